"""Checks of boxes, and of the numbers in them, that all annotation formats share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.utils.logger import log_first_n

from ..utils.errors import DataError, printable

__all__ = [
    "LARGEST",
    "TOLERANCE",
    "check_corners",
    "check_fractions",
    "is_box",
    "is_number",
    "tell",
    "warn",
    "warn_of_crowd",
    "without_area",
]

LARGEST = 1e9  # pixels; areas stay finite
TOLERANCE = 1.0  # pixels by which labelling tools leave the image

_MOST_CROWD = 0.05  # of the annotations without a warning; COCO has 0.01
_FEWEST_CORNERS = 5  # boxes that leave their image; fewer may do so by chance
_MOST_FIT = 0.95  # of all corners, as some may be broken


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of bounded size, and not a bool."""
    return type(value) in (int, float) and abs(value) <= LARGEST


def is_box(box: Any) -> bool:
    """Whether a value is a list of four numbers; see :func:`is_number`."""
    return isinstance(box, list) and len(box) == 4 and all(is_number(value) for value in box)


def without_area(boxes: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes without area, also of negative sides, and the others that lie outside their image.

    Args:
        boxes: (N, 4), x, y, width and height in pixels.
        limits: (N, 2), width and height of the boxes' images.

    Returns:
        Two (N,) bool.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    flat = (high <= 0).any(axis=1)
    return flat, ~flat & ((low >= limits) | (low + high <= 0)).any(axis=1)


def check_fractions(
    source: str, boxes: np.ndarray, limits: np.ndarray, names: Sequence[str]
) -> None:
    """Checks that boxes are in pixels, and no fractions of their image.

    Args:
        source: the file or folder of the boxes, for the message.
        boxes: (N, 4), x, y, width and height in pixels.
        limits: (N, 2), width and height of the boxes' images.
        names: of the N boxes.

    Raises:
        DataError: all are fractions.
    """
    flat = (boxes[:, 2:] == 0).any(axis=1)
    # Of an image of one pixel, fractions and pixels are the same
    if not flat.all() and 0 <= boxes.min() and boxes.max() <= 1 and limits.max() > 1:
        raise DataError(
            f"all boxes in {source} lie between 0 and 1 ({names[0]} has {boxes[0].tolist()}), as"
            " fractions of the image do: write them in pixels, from the upper left corner"
        )


def check_corners(source: str, boxes: np.ndarray, limits: np.ndarray, names: Sequence[str]) -> None:
    """Checks that boxes are no corners (x0, y0, x1, y1); see :func:`check_fractions`.

    Corners read as sizes mostly leave the image. Few sizes all look like corners.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    leaves = (low + high > limits + TOLERANCE).any(axis=1)
    fits = (low >= -TOLERANCE) & (high > low) & (high <= limits + TOLERANCE)
    fits = fits.all(axis=1)
    if leaves.mean() <= 0.5 or fits.mean() < _MOST_FIT:
        return
    first = leaves.argmax()
    box, (width, height) = ", ".join(f"{value:g}" for value in boxes[first]), limits[first]
    sentence = (
        f"{leaves.sum()} of {len(boxes)} boxes in {source} leave their image as [x, y, width,"
        f" height], and {fits.sum()} lie inside it as corners [x0, y0, x1, y1] (the first is"
        f" {names[first]} with [{box}] in {width:g} x {height:g} pixels): if they are corners,"
        " subtract x0 and y0 from the last two numbers; otherwise clip them to the image"
    )
    if leaves.sum() >= _FEWEST_CORNERS:
        raise DataError(sentence)
    warn(sentence)


def warn_of_crowd(source: str, num_crowd: int, total: int, flag: str) -> None:
    """Warns if more than a few annotations are crowd regions.

    Args:
        source: the file or folder of the annotations, for the message.
        num_crowd: number of crowd regions.
        total: number of annotations.
        flag: that marks them.
    """
    if num_crowd > _MOST_CROWD * total:
        warn(
            f"{num_crowd} of {total} annotations in {source} are crowd regions, which are not"
            f" trained on and do not count as objects in evaluation: set their {flag} to 0 if they"
            " are single objects"
        )


def warn(sentence: str) -> None:
    """Warns once, although training and testing may read the same file, and repeatedly."""
    log_first_n(logging.WARNING, printable(sentence), name=__name__, key="message")


def tell(sentence: str) -> None:
    """Logs once; see :func:`warn`."""
    log_first_n(logging.INFO, printable(sentence), name=__name__, key="message")
