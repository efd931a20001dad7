#!/usr/bin/env python
"""Exports a trained OneNet, with a parity check against the PyTorch model.

python tools/export.py --weights output/model_final.pth --output model.onnx [--evaluate] \\
    [--config-file configs/digits/recommended_R18_FPN.yaml] [KEY value ...]

The ending selects the format: .onnx (ONNX, for ONNX Runtime, OpenVINO, TensorRT, onenet_runtime),
.pt2 (torch.export), .ts (TorchScript, for C++). The file includes normalisation, top-k and box
decoding; there is no NMS. File and model are compared on real images of five sizes, one at a time
and three in a batch; if they differ by more than the tolerances, no file is written. As
``onenet export``.
"""

from __future__ import annotations

import argparse

from onenet.cli import export
from onenet.utils.errors import exit_with_one_sentence


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", help="default: the one in the checkpoint")
    parser.add_argument("--weights", required=True, help="a checkpoint of train_net.py")
    export.add_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY value ...")
    return parser.parse_args()


if __name__ == "__main__":
    with exit_with_one_sentence():
        export.run(parse_arguments())
