"""The subcommands of ``onenet``; each has a file of its own."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

from .. import __version__
from ..utils.errors import exit_with_one_sentence
from . import audit, compare, export, inspect, predict, train
from . import eval as evaluate

__all__ = ["main"]

_COMMANDS = {
    "train": (train, "train on a folder of photos, evaluate, and draw"),
    "eval": (evaluate, "evaluate a checkpoint on a folder of photos"),
    "predict": (predict, "draw detections on images"),
    "export": (export, "write an ONNX file for use without PyTorch"),
    "compare": (compare, "train and evaluate detectors alike, on a folder of photos or by a plan"),
    "inspect": (inspect, "draw the location that each object of a folder is assigned to"),
    "audit": (audit, "measure how much any detectors need NMS, from COCO results files"),
}

# Of Detectron2's own code, which users cannot change. Here, so that spawned workers have it, too.
for _text, _category in {
    "torch.meshgrid: in an upcoming release": UserWarning,
    r"`torch\.cuda\.amp\.": FutureWarning,
    "`torch.jit.script` is deprecated": FutureWarning,
}.items():
    warnings.filterwarnings("ignore", _text, _category)


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line; errors are one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="onenet",
        description="An object detector without NMS, from a folder of photos.",
        epilog="Config overrides follow as KEY value ..., such as SOLVER.IMS_PER_BATCH 4.",
    )
    parser.add_argument("--version", action="version", version=f"onenet {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, text) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module not in (train, compare, audit):
            command.add_argument("weights", metavar="WEIGHTS", help="a checkpoint, model_best.pth")
        module.add_arguments(command)
        command.set_defaults(run=module.run, config_file="")
    args, args.opts = parser.parse_known_args(words)
    if unknown := [word for word in args.opts if word.startswith("--")]:
        parser.error(f"there is no option {unknown[0]}")
    with exit_with_one_sentence():
        args.run(args)
