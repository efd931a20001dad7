#!/usr/bin/env python
"""Trains detectors alike, measures them alike, and writes one page that compares them.

python tools/compare.py CONFIG [CONFIG ...] --output FOLDER --seeds 1 2 3 --set SOLVER.MAX_ITER 800
python tools/compare.py --plan configs/compare/digits.yaml
python tools/compare.py FOLDER [FOLDER ...] --output FOLDER       (runs that train_net.py finished)

Configs are trained with train_net.py, once for each seed, --jobs of them at a time. Finished runs'
folders are evaluated if they have not been, and never changed. A start that was cut off is
continued by the same command; a second start of a finished comparison does nothing. --output,
--title, --seeds and --set change a plan for once. A run that fails keeps no other from being
completed, but the page is written only when all are.
"""

import argparse
import shlex
import sys
from pathlib import Path

from onenet.comparison import (
    Plan,
    ReportOptions,
    RunFailed,
    compare,
    plan_from_paths,
    read_plan,
)
from onenet.utils.errors import ConfigError, exit_with_one_sentence

TRAIN_NET = Path(__file__).resolve().parents[1] / "train_net.py"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", help="config files, or folders of finished runs")
    parser.add_argument(
        "--plan", help="yaml file that says what is compared; give it or paths, not both"
    )
    parser.add_argument(
        "--output",
        help="folder of the comparison (default: the plan's, or output/compare without a plan)",
    )
    parser.add_argument("--title", help="title of the page (default: the plan's, or a general one)")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        help="seeds to train each config with (default: the plan's, or 1 without a plan)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar=("KEY", "VALUE"),
        help="overrides for all configs, after the plan's: KEY value KEY value ...",
    )
    parser.add_argument(
        "--num-gpus", type=int, help="number of GPUs of each training (default: train_net.py's)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="number of trainings at the same time (default: 1); on one GPU too, which small models"
        " leave mostly idle",
    )
    parser.add_argument(
        "--images", type=int, default=6, help="number of images in the pictures (default: 6)"
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.3,
        help="least score of a box in the pictures (default: 0.3)",
    )
    parser.add_argument(
        "--speed-rounds",
        type=int,
        default=20,
        help="number of rounds that time each detector (default: 20; 0: speed is not measured)",
    )
    parser.add_argument(
        "--rewrite",
        action="store_true",
        help="measure speed and write the page again, even if it is up to date; runs that are not"
        " finished are still completed first",
    )
    return parser.parse_args()


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan that the command line asks for."""
    if bool(args.plan) == bool(args.paths):
        raise ConfigError(
            "Give either --plan FILE, or config files or finished runs' folders to compare."
        )
    if args.plan:
        return read_plan(args.plan).changed(
            title=args.title, output=args.output, seeds=args.seeds, overrides=args.set
        )
    return plan_from_paths(
        args.paths,
        title=args.title,
        output=args.output or "output/compare",
        seeds=args.seeds or [1],
        overrides=args.set,
    )


def main() -> None:
    args = parse_arguments()
    try:
        with exit_with_one_sentence():
            compare(
                make_plan(args),
                [sys.executable, str(TRAIN_NET)],
                command=shlex.join(["python", *sys.argv]),
                options=ReportOptions(args.images, args.score, args.speed_rounds),
                num_gpus=args.num_gpus,
                jobs=args.jobs,
                write_anew=args.rewrite,
            )
    except RunFailed as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped; the same command continues.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
