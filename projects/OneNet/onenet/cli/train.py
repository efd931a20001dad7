"""``onenet train``: from a folder of photos to a detector, with the recommended settings."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from PIL import Image

from ..config import OWN_DATA
from ..detector import Detector
from ..engine import launch_workers, path_value, run_arguments, train_or_evaluate
from ..utils.errors import ConfigError, exit_with_one_sentence
from ..utils.visualizer import tile
from .terminal import short_log

__all__ = ["add_arguments", "run"]

_CONFIG = str(OWN_DATA / "recommended.yaml")
_NUM_PICTURES, _NUM_COLUMNS, _HEIGHT = 8, 4, 320  # height in pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("folder", metavar="FOLDER", help="of images and annotations")
    parser.add_argument("--output", help="folder of the results (default: output/<FOLDER's name>)")
    parser.add_argument(
        "--epochs", type=int, help="passes over the training images (default: 1,000 batches of 8)"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted training")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="(default: 1)")


def run(args: argparse.Namespace) -> None:
    """Trains on ``args.folder``, evaluates the best checkpoint, draws, and prints what comes next.

    Raises:
        ConfigError, DataError, TrainingError: see :func:`onenet.engine.train_or_evaluate`.
    """
    output = args.output or os.path.join("output", Path(args.folder).resolve().name)
    opts = ["DATASETS.FOLDER", path_value(args.folder), "OUTPUT_DIR", path_value(output)]
    if args.epochs is not None:
        opts += ["SOLVER.EPOCHS", str(args.epochs)]
    opts += args.opts
    launch_workers(_train, run_arguments(_CONFIG, opts, resume=args.resume, num_gpus=args.num_gpus))


def _train(args: argparse.Namespace) -> None:
    """What every worker runs."""
    with exit_with_one_sentence(), short_log():
        output = Path(train_or_evaluate(args).OUTPUT_DIR)
        weights = output / "model_best.pth"
        has_best = weights.is_file()  # not without validation images
        if has_best:
            # Again, so that the thresholds beside it are of these weights
            opts = [*args.opts, "MODEL.WEIGHTS", path_value(str(weights))]
            cfg = train_or_evaluate(run_arguments(_CONFIG, opts, eval_only=True))
        if not comm.is_main_process():
            return
        if has_best:
            picture = output / "val_predictions.jpg"
            try:
                draw_predictions(cfg, weights, picture)
                print(f"\nDetections on validation images: {picture}")
            except ConfigError as error:  # OpenCV is optional
                print(f"\nNo picture: {error}")
        else:
            weights = output / "model_final.pth"
        print(f"Next: onenet predict {weights} photo.jpg")


def draw_predictions(cfg: CfgNode, weights: Path, path: Path) -> None:
    """Draws detections on up to eight images of the test set, spread over it, as one picture.

    Args:
        cfg: its test set is registered.
        weights: a checkpoint that has its config.
        path: of the picture.
    """
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    count = min(len(records), _NUM_PICTURES)
    chosen = [records[i * len(records) // count] for i in range(count)]
    detector = Detector(weights)
    pictures = [detector(record["file_name"]).draw(_HEIGHT) for record in chosen]
    rows = [pictures[i : i + _NUM_COLUMNS] for i in range(0, count, _NUM_COLUMNS)]
    Image.fromarray(tile(rows)).save(path, quality=90)
