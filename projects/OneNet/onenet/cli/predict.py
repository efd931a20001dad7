"""``onenet predict``: draws what a trained detector finds on images."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..detector import Detector
from ..utils.errors import ConfigError, DataError, printable
from .image_files import find_images, make_folder, plan_outputs, split_overrides

__all__ = [
    "add_arguments",
    "add_threshold",
    "detect_and_draw",
    "load_detector",
    "predict_images",
    "run",
]


def score_threshold(text: str) -> float | str:
    """A number in [0, 1], or "auto"."""
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither 'auto' nor a score from 0 to 1")
    return value


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Adds --threshold."""
    parser.add_argument(
        "--threshold",
        type=score_threshold,
        default=None,
        metavar="auto|SCORE",
        help="lowest score shown; auto: for each class that of best F1, which the evaluation of"
        " these weights found (default: auto where it did, else 0.3)",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments but for the checkpoint."""
    parser.add_argument(
        "input", nargs="+", metavar="INPUT", help="images, folders of images, or globs"
    )
    parser.add_argument(
        "--output",
        default="detected",
        help="a folder, or a file for a single image (default: detected)",
    )
    add_threshold(parser)


def run(args: argparse.Namespace) -> None:
    """Draws detections on the images of ``args.input``.

    Raises:
        ConfigError, DataError: see :func:`predict_images` and :class:`onenet.detector.Detector`.
    """
    args.input, opts = split_overrides(args.input)
    args.opts = [*opts, *args.opts]
    images = find_images(args.input)
    outputs = plan_outputs(images, args.output)
    make_folder(outputs[0].parent)
    predict_images(load_detector(args), images, outputs)
    print(f"Pictures: {args.output}")


def load_detector(args: argparse.Namespace) -> Detector:
    """The detector of ``args``; prints which thresholds it has, unless a score is given.

    Args:
        args: with weights, config_file, opts and threshold.
    """
    threshold = None if args.threshold == "auto" else args.threshold
    detector = Detector(
        args.weights, threshold=threshold, config_file=args.config_file, opts=args.opts
    )
    note, calibrated = detector.predictor.calibration_note, detector.predictor.calibrated
    if args.threshold == "auto" and calibrated is None:
        raise ConfigError(f"--threshold auto: {note}")
    if threshold is None:
        print(note)
    return detector


def detect_and_draw(detector: Detector, image: np.ndarray) -> tuple[np.ndarray, str]:
    """The picture of an image's detections, and a few words on them."""
    start = time.perf_counter()
    found = detector(image)
    seconds = time.perf_counter() - start
    words = f"{len(found)} detection{'' if len(found) == 1 else 's'} in {seconds:.2f} s"
    return found.draw(), words


def predict_images(
    detector: Detector,
    images: Sequence[Path],
    outputs: Sequence[Path | None],
    show: Callable[[np.ndarray], bool] | None = None,
) -> None:
    """Detects on images, prints a line for each, and writes or shows its picture.

    Args:
        detector: of a checkpoint.
        images: files.
        outputs: of each image's picture, in folders that exist; None to show it.
        show: shows an RGB picture; False ends.

    Raises:
        DataError: images that could not be read, or pictures that could not be written, with a line
            for each; the others are done.
    """
    failures = []
    for path, output in zip(images, outputs, strict=True):
        try:
            picture, words = detect_and_draw(detector, detector.predictor.read(str(path)))
        except DataError as error:
            failures.append(f"{path}: {error}")
            continue
        print(printable(f"{path}: {words}"))
        if output is not None:
            try:
                Image.fromarray(picture).save(output)
            except OSError as error:
                failures.append(f"{path}: cannot write {output} ({error.strerror or error})")
        elif show is not None and not show(picture):
            break
    if failures:
        raise DataError(f"{len(failures)} of {len(images)} images failed:\n" + "\n".join(failures))
