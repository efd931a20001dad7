"""``onenet eval``: evaluates a checkpoint on a folder of photos.

The folder's validation images are used, or those of --split; without any, those that a training
would hold back.
"""

from __future__ import annotations

import argparse
import os

from ..config.defaults import JSON_KEYS
from ..engine import path_value, run_arguments, train_or_evaluate
from .terminal import short_log

__all__ = ["add_arguments", "on_folder", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments but for the checkpoint."""
    parser.add_argument("folder", metavar="FOLDER", help="of images and annotations")
    parser.add_argument("--split", default="val", help="train, val or test (default: val)")
    parser.add_argument("--output", help="folder of the results (default: the checkpoint's)")


def run(args: argparse.Namespace) -> None:
    """Evaluates ``args.weights`` on ``args.folder``.

    Raises:
        ConfigError, DataError: see :func:`onenet.engine.train_or_evaluate`.
    """
    output = args.output or os.path.dirname(args.weights)
    opts = [*on_folder(args.folder), "OUTPUT_DIR", path_value(output)]
    opts += ["DATASETS.EVAL_SPLIT", args.split, *args.opts]
    with short_log():
        train_or_evaluate(run_arguments(args.weights, opts, eval_only=True))


def on_folder(folder: str) -> list[str]:
    """Config overrides that replace the datasets of a training by a folder."""
    without = [word for key in JSON_KEYS for word in (f"DATASETS.{key}", "")]
    return ["DATASETS.FOLDER", path_value(folder), *without]
