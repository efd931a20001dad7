"""``onenet compare``: trains and evaluates detectors alike, and writes one page on them.

A folder of photos: OneNet's recommended config and FCOS with NMS are trained on it, from the same
backbone and with the same schedule. A plan (yaml, see docs/comparison.md): its runs. Configs and
folders of finished runs: each of them.

Runs are trained by train_net.py's code, once for each seed, --jobs of them at a time. Finished
runs' folders are evaluated if they have not been, and never changed. A start that was cut off is
continued by the same command; a second start of a finished comparison does nothing. A run that
fails keeps no other from being completed, but the page is written only when all are.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from ..comparison import ReportOptions, RunFailed, compare, find_plan
from ..utils.errors import ConfigError
from .image_files import split_overrides

__all__ = ["add_arguments", "add_options", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "input", nargs="+", metavar="INPUT", help="a folder of photos, a plan, configs or runs"
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options, which tools/compare.py has too."""
    parser.add_argument(
        "--output",
        help="folder of the comparison (default: the plan's, else output/compare, or of photos"
        " output/compare/<FOLDER's name>)",
    )
    parser.add_argument("--title", help="title of the page (default: the plan's, or a general one)")
    parser.add_argument(
        "--seeds",
        nargs="+",
        metavar="N",
        help="seeds to train each config with, after INPUT (default: the plan's, else 1)",
    )
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="number of GPUs of each training (default: 1)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="number of trainings at the same time (default: 1); on one GPU too, which small models"
        " leave mostly idle",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=6,
        metavar="N",
        help="number of images in the pictures (default: 6)",
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
        metavar="N",
        help="number of rounds that time each detector (default: 20; 0: speed is not measured)",
    )
    parser.add_argument(
        "--rewrite",
        action="store_true",
        help="measure speed and write the page again, even if it is up to date; runs that are not"
        " finished are still completed first",
    )


def run(args: argparse.Namespace) -> None:
    """Completes the comparison of ``args.input``; see :func:`onenet.comparison.compare`.

    Raises:
        ConfigError, DataError: see there, and :func:`onenet.comparison.find_plan`.
    """
    paths, opts = split_overrides(args.input)
    if not paths:
        raise ConfigError("Name a folder of photos, a plan, configs or runs before the overrides.")
    seeds, more = split_overrides(args.seeds or [])
    plan = find_plan(
        paths,
        title=args.title,
        output=args.output,
        seeds=[int(seed) if seed.isdecimal() else seed for seed in seeds] or None,
        overrides=[*opts, *more, *args.opts],
    )
    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else ["onenet"]
    try:
        compare(
            plan,
            [sys.executable, "-m", "onenet.engine"],
            command=shlex.join([*program, *sys.argv[1:]]),
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
