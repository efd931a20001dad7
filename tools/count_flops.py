#!/usr/bin/env python
"""Counts the parameters, and the multiply-adds of backbone and head for one square image.

python tools/count_flops.py CONFIG SIZE [KEY value ...]
"""

import argparse

import torch
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from onenet.engine import load_config
from onenet.modeling.meta_arch import OneNet
from onenet.utils.errors import exit_with_one_sentence


class Network(nn.Module):
    """Maps a normalised image to logits and boxes."""

    def __init__(self, model: OneNet) -> None:
        super().__init__()
        self.backbone, self.head, self.names = model.backbone, model.head, model.head_in_features

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(image)
        predictions = self.head([features[name] for name in self.names])
        return predictions.pred_logits, predictions.pred_boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="of a OneNet model")
    parser.add_argument("size", type=int, help="side of the image in pixels, a multiple of 32")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY value ...")
    args = parser.parse_args()
    with exit_with_one_sentence():
        cfg = load_config(args.config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *args.opts])
        model = build_model(cfg).eval()
    flops = FlopCountAnalysis(Network(model), torch.zeros(1, 3, args.size, args.size))
    flops.unsupported_ops_warnings(False)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{flops.total() / 1e9:.3f} G multiply-adds, {parameters / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
