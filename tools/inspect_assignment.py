#!/usr/bin/env python
"""Shows each object's positive sample, its cost terms, and the runner-up.

python tools/inspect_assignment.py --config-file configs/digits/onenet_fcos_R18_FPN.yaml \\
    --weights model_final.pth --output output/inspect [KEY value ...]
python tools/inspect_assignment.py ... --weights model_0000499.pth --other-weights model_final.pth

Uses images of DATASETS.TEST with objects. Writes a picture of each (with two checkpoints: first,
second, and the moves between them) and assignments.json with all numbers, and prints tables and a
summary. Pixels are those of the network's input. As ``onenet inspect``, for any dataset.
"""

from __future__ import annotations

import argparse

from onenet.cli import inspect
from onenet.utils.errors import exit_with_one_sentence


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", help="default: the one in the checkpoint")
    parser.add_argument("--weights", required=True, help="a checkpoint of train_net.py")
    parser.add_argument("--output", required=True, help="folder")
    inspect.add_options(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY value ...")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    with exit_with_one_sentence():
        inspect.inspect(parse_arguments(words))


if __name__ == "__main__":
    main()
