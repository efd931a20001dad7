"""Draws boxes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import printable

__all__ = ["draw_boxes"]


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    class_ids: np.ndarray,
    labels: Sequence[str],
    height: int,
) -> np.ndarray:
    """Draws labelled boxes, the first on top.

    Args:
        image: (H, W, 3) uint8, RGB; stays as it is.
        boxes: (n, 4), corners in pixels of the image.
        class_ids: (n,); each class has a color.
        labels: of the boxes.
        height: of the result, in pixels.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    picture = Image.fromarray(image)
    scale = height / picture.height
    if scale != 1:
        size = (round(picture.width * scale), height)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    shorter = min(picture.size)
    thickness = max(1, round(shorter / 400))
    font = ImageFont.load_default(max(10, shorter / 35))
    rows = zip(boxes * scale, class_ids, labels, strict=True)
    for box, class_id, label in reversed(list(rows)):
        color = _color(int(class_id))
        x0, y0, x1, y1 = (round(float(value)) for value in box)
        draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=color, width=thickness)
        # White text on the color, above the corner where there is room, else below it
        text = printable(label)
        _, _, width, text_height = draw.textbbox((0, 0), text, font)
        left = max(0, min(x0, picture.width - width))
        top = y0 - text_height if y0 >= text_height else y0
        draw.rectangle((left, top, left + width, top + text_height), fill=color)
        draw.text((left, top), text, "white", font)
    return np.array(picture)


def _color(class_id: int) -> tuple[int, int, int]:
    """In RGB; neighbouring classes get hues far apart."""
    hue = (class_id * 0.618034) % 1.0  # the golden section
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.9)
    return int(red * 255), int(green * 255), int(blue * 255)
