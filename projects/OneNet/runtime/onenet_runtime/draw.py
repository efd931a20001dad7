"""Draws detections."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .detector import Detections
from .errors import printable

__all__ = ["draw_detections"]


def draw_detections(image: np.ndarray, detections: Detections) -> np.ndarray:
    """Draws boxes with class names and scores, the best on top.

    Args:
        image: (H, W, 3) uint8, BGR; stays as it is.
        detections: in pixels of the image.

    Returns:
        (H, W, 3) uint8, BGR.
    """
    picture = Image.fromarray(image)  # BGR to us, RGB to Pillow, which paints it all the same
    draw = ImageDraw.Draw(picture)
    shorter = min(picture.size)
    thickness = max(1, round(shorter / 400))
    font = ImageFont.load_default(max(10, shorter / 35))
    rows = zip(*detections, strict=True)
    for box, score, class_index, name in reversed(list(rows)):
        color = _color(int(class_index))
        x0, y0, x1, y1 = (round(float(value)) for value in box)
        draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=color, width=thickness)
        # White text on the color, above the corner where there is room, else below it
        text = printable(f"{name} {score:.2f}")
        _, _, width, height = draw.textbbox((0, 0), text, font)
        left = max(0, min(x0, picture.width - width))
        top = y0 - height if y0 >= height else y0
        draw.rectangle((left, top, left + width, top + height), fill=color)
        draw.text((left, top), text, "white", font)
    return np.array(picture)


def _color(class_index: int) -> tuple[int, int, int]:
    """In BGR; neighbouring classes get hues far apart."""
    hue = (class_index * 0.618034) % 1.0  # the golden section
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.9)
    return int(blue * 255), int(green * 255), int(red * 255)
