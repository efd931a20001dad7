"""``onenet audit``: measures how much detectors need NMS, from their COCO results files.

The files may come from any framework. Of a detector with NMS of its own give two, NAME=... without
and NAME-nms=... with it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from tabulate import tabulate

from ..comparison import audit
from ..comparison.tables import Table, crowding_table, summary_table
from ..utils.errors import ConfigError, printable

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--annotations", required=True, metavar="JSON", help="of the images, in COCO format"
    )
    parser.add_argument(
        "--detections",
        required=True,
        nargs="+",
        metavar="[NAME=]JSON",
        help="COCO results files (default NAME: that of the file)",
    )
    parser.add_argument("--output", help="folder for audit.html, audit.json and thresholds")
    parser.add_argument("--images", help="folder of the images, for pictures in audit.html")
    parser.add_argument(
        "--nms", type=float, default=0.6, metavar="IOU", help="threshold of NMS (default: 0.6)"
    )
    parser.add_argument(
        "--min-score",
        type=float,
        help="of pictured boxes (default: an image's best ones, as many as it has objects)",
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        default=100,
        help="COCO's limit per class and image (default: 100)",
    )


def run(args: argparse.Namespace) -> None:
    """Prints tables of the metrics, and writes the page.

    Raises:
        ConfigError, DataError: see :func:`onenet.comparison.audit`.
    """
    if args.opts:
        raise ConfigError(f"'{args.opts[0]}' is not known; see onenet audit --help.")
    if args.images is not None and args.output is None:
        raise ConfigError("--images are for the page; give its folder, --output.")
    audited = audit(
        args.annotations,
        _by_name(args.detections),
        output=args.output,
        image_root=args.images,
        nms_thresh=args.nms,
        max_dets_per_image=args.max_detections,
        min_score=args.min_score,
        command=shlex.join(["onenet", *sys.argv[1:]]),
    )
    _show(summary_table(audited))
    print("By an object's largest IoU with another object of its class in the same image:\n")
    _show(crowding_table(audited))
    for note in audited["notes"]:
        print(printable(f"Mind: {note}"))
    if args.output is not None:
        print(f"Page: {os.path.join(args.output, 'audit.html')}")


def _by_name(words: Sequence[str]) -> dict[str, str]:
    """The files of [NAME=]JSON by name."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or os.path.exists(word):
            name, path = os.path.splitext(os.path.basename(word))[0], word
        if not path:
            raise ConfigError(f"--detections has '{word}', which names no file; give NAME=JSON.")
        if name in found:
            raise ConfigError(
                f"--detections has two files named '{name}', {found[name]} and {path}; give them"
                " other names, as NAME=JSON."
            )
        found[name] = path
    return found


def _show(table: Table) -> None:
    width = len(table.header)
    rows = [row + [""] * (width - len(row)) for row in table.rows]
    text = tabulate(
        rows, table.header, disable_numparse=True, maxcolwidths=[24], maxheadercolwidths=10
    )
    print(printable(text) + "\n")
