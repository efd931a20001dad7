"""Draws detections."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from .detector import Detections
from .errors import printable

__all__ = ["draw_detections"]

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_detections(image: np.ndarray, detections: Detections) -> np.ndarray:
    """Draws boxes with class names and scores, the best on top.

    Args:
        image: (H, W, 3) uint8, BGR; stays as it is.
        detections: in pixels of the image.

    Returns:
        (H, W, 3) uint8, BGR.
    """
    picture = np.array(image, order="C")
    shorter = min(picture.shape[:2])
    thickness = max(1, round(shorter / 400))
    scale = max(0.35, shorter / 1200)
    rows = zip(*detections, strict=True)
    for box, score, class_index, name in reversed(list(rows)):
        color = _color(int(class_index))
        x0, y0, x1, y1 = (round(float(value)) for value in box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), color, thickness, cv2.LINE_AA)
        _draw_label(picture, printable(f"{name} {score:.2f}"), (x0, y0), color, scale)
    return picture


def _color(class_index: int) -> tuple[int, int, int]:
    """Neighbouring classes get hues far apart."""
    hue = (class_index * 0.618034) % 1.0  # the golden section
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.9)
    return int(blue * 255), int(green * 255), int(red * 255)


def _draw_label(
    picture: np.ndarray,
    text: str,
    corner: tuple[int, int],
    color: tuple[int, int, int],
    scale: float,
) -> None:
    """White text on the color, above the corner where there is room, else below it."""
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
    left = max(0, min(corner[0], picture.shape[1] - width))
    top = corner[1] - height - baseline
    if top < 0:
        top = corner[1]
    bottom = top + height + baseline
    cv2.rectangle(picture, (left, top), (left + width, bottom), color, cv2.FILLED)
    origin = (left, bottom - baseline)
    cv2.putText(picture, text, origin, _FONT, scale, (255, 255, 255), 1, cv2.LINE_AA)
