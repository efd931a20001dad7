"""``onenet inspect``: draws and lists the location that each object is assigned to in training.

Six validation images of the folder, or the images of --image-ids, at the size of the network's
input, with each object's positive sample (dot), its cost terms, and the runner-up (ring). With
--other-weights also the moves between two checkpoints. assignments.json has all numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from ..checkpoint import load_weights
from ..engine import load_config
from ..engine.class_names import check_class_names, trained_class_names
from ..evaluation.inspection import inspect_assignment
from ..evaluation.inspection_report import load_inputs, report
from ..modeling.meta_arch import OneNet
from ..utils.errors import ConfigError
from .eval import on_folder
from .image_files import make_folder

__all__ = ["add_arguments", "add_options", "inspect", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments but for the checkpoint."""
    parser.add_argument("folder", metavar="FOLDER", help="of images and annotations")
    parser.add_argument("--output", default="inspected", help="folder (default: inspected)")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options, which tools/inspect_assignment.py has too."""
    parser.add_argument("--other-weights", help="a second one, to see what moves between the two")
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--num-images", type=int, default=6, metavar="N", help="the first ones (default: 6)"
    )
    # Not nargs="+", which would also take the overrides
    images.add_argument(
        "--image-ids", type=lambda text: text.split(","), metavar="ID,ID", help="chosen ones"
    )


def run(args: argparse.Namespace) -> None:
    """Inspects ``args.weights`` on ``args.folder``; see :func:`inspect`."""
    args.opts = [*on_folder(args.folder), *args.opts]
    inspect(args)


def inspect(args: argparse.Namespace) -> None:
    """Inspects one or two checkpoints on images of DATASETS.TEST.

    Args:
        args: with weights, config_file ("" for the one in the checkpoint), opts, output, and the
            options.

    Raises:
        ConfigError: the checkpoint is no OneNet, or the output cannot be written.
        DataError: see :func:`onenet.evaluation.inspection_report.load_inputs`.
    """
    source = args.config_file or args.weights
    cfg = load_config(source, args.opts, eval_only=True)
    model = build_model(cfg).eval()
    if not isinstance(model, OneNet):
        raise ConfigError(
            f"{source} describes a {cfg.MODEL.META_ARCHITECTURE}; only OneNet assigns one sample to"
            " each object, so give a checkpoint of it."
        )
    images = load_inputs(cfg, args.num_images, args.image_ids)
    folder = Path(args.output)
    make_folder(folder)
    checkpoints = [args.weights, *([args.other_weights] if args.other_weights else [])]
    found = []
    for path in checkpoints:
        check_class_names(cfg, path, trained_class_names(cfg, path, load_weights(model, path)))
        found.append([inspect_assignment(model, inputs) for inputs in images])
    names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    report(images, checkpoints, found, names, cfg.INPUT.FORMAT, folder)
    print(
        f"\nPictures and assignments.json: {folder}"
        "\nIn the pictures: object and stride, as in the tables; dot: positive sample; ring:"
        " runner-up, or, with an arrow, where the positive was before."
    )
