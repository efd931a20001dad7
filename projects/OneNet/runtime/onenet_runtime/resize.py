"""The resize of Detectron2's ``ResizeShortestEdge``, by Pillow as there."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["resize_bilinear", "resized_shape"]


def resized_shape(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """The size that ``ResizeShortestEdge`` of Detectron2 gives an image.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        min_size: what the shorter side becomes, in pixels; 0 leaves the image as it is.
        max_size: what the longer side may be at most, in pixels; the shorter side gives way.

    Returns:
        (height, width) in pixels. One of them is 0 where the image is too narrow.
    """
    if min_size == 0:
        return height, width
    # In this order of operations, all in float64: another one rounds differently.
    scale = float(min_size) / min(height, width)
    if height < width:
        new_height, new_width = float(min_size), scale * width
    else:
        new_height, new_width = scale * height, float(min_size)
    if max(new_height, new_width) > max_size:
        scale = float(max_size) / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes by Pillow's ``BILINEAR``, as Detectron2 does.

    Args:
        image: (H, W, 3) uint8.
        height: of the result, in pixels, at least 1.
        width: of the result, in pixels, at least 1.

    Returns:
        (height, width, 3) uint8, contiguous.
    """
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized)
