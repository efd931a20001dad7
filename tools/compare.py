#!/usr/bin/env python
"""Trains detectors alike, measures them alike, and writes one page that compares them.

python tools/compare.py CONFIG [CONFIG ...] --output FOLDER --seeds 1 2 3 --set SOLVER.MAX_ITER 800
python tools/compare.py --plan configs/compare/digits.yaml
python tools/compare.py FOLDER [FOLDER ...] --output FOLDER       (runs that train_net.py finished)

As ``onenet compare``, whose --help tells more.
"""

from __future__ import annotations

import argparse

from onenet.cli import compare
from onenet.utils.errors import exit_with_one_sentence


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "input", nargs="*", default=[], help="config files, or folders of finished runs"
    )
    source.add_argument("--plan", help="yaml file that says what is compared")
    parser.add_argument(
        "--set",
        dest="opts",
        nargs="+",
        default=[],
        metavar=("KEY", "VALUE"),
        help="overrides for all configs, after the plan's: KEY value KEY value ...",
    )
    compare.add_options(parser)
    args = parser.parse_args()
    args.input = args.input or [args.plan]
    return args


def main() -> None:
    with exit_with_one_sentence():
        compare.run(parse_arguments())


if __name__ == "__main__":
    main()
