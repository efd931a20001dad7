"""The resize of Detectron2's test time, without Detectron2 and Pillow, and equal to it bit for bit.

Detectron2 picks the size as ``ResizeShortestEdge`` does and resizes 8-bit images by Pillow's
``Image.resize(..., BILINEAR)``: a triangle filter that widens with the shrinking factor, in fixed
point with 22 fractional bits, along the width, then along the height, rounded to 8 bits after each.
Pillow 13 turns the order round where the height loses more than twice as many pixels as the width;
older ones do not, so that their values differ there by the rounding, at most 1: with the aspect
kept, that is an image more than twice as high as wide, made smaller.
"""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["resize_bilinear", "resized_shape"]

_ONE = 1 << 22  # fixed-point 1.0 of the filter's weights
_BLOCK = 4  # output rows of one matrix product: more would multiply more zeros
# Scalar products of one matrix product. The largest that OpenBLAS leaves to one thread: its threads
# are no faster here, and far slower where they wait for a busy core.
_PRODUCTS = 1 << 18


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
    """Resizes as Pillow's 8-bit ``BILINEAR`` does, bit for bit.

    Args:
        image: (H, W, 3) uint8.
        height: of the result, in pixels, at least 1.
        width: of the result, in pixels, at least 1.

    Returns:
        (height, width, 3) uint8, contiguous; the image itself where the size is the same and it is
        contiguous.
    """
    image = np.ascontiguousarray(image)
    old_height, old_width = image.shape[:2]
    if old_height - height > 2 * max(old_width - width, 0):
        return _resize_width(_resize_height(image, height), width)
    return _resize_height(_resize_width(image, width), height)


def _resize_width(image: np.ndarray, size: int) -> np.ndarray:
    if size == image.shape[1]:
        return image
    return cv2.transpose(_resize_height(cv2.transpose(image), size))


def _resize_height(image: np.ndarray, size: int) -> np.ndarray:
    if size == image.shape[0]:
        return image
    weights, first = _filter(image.shape[0], size)
    rows = image.reshape(image.shape[0], -1)
    result = np.empty((size, rows.shape[1]), dtype=np.uint8)
    for start in range(0, size, _BLOCK):
        block = slice(start, start + _BLOCK)
        matrix, lowest = _band(weights[block], first[block])
        needed = rows[lowest : lowest + matrix.shape[1]]
        step = max(1, _PRODUCTS // matrix.size)
        for left in range(0, rows.shape[1], step):
            columns = slice(left, left + step)
            # Products and sums are multiples of 2**-22 below 2**9: exact in float64, in any order.
            sums = matrix @ needed[:, columns].astype(np.float64)
            sums += 0.5
            np.minimum(
                sums, 255.0, out=sums
            )  # as Pillow does: rounded weights may sum to more than 1
            result[block, columns] = sums.astype(np.uint8)
    return result.reshape(size, *image.shape[1:])


def _filter(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The triangle filter.

    Returns:
        weights (new, taps) float64, multiples of 2**-22, 0 behind a row's last tap; and the first
        input sample (new,) of each output sample.
    """
    scale = old / new
    support = max(scale, 1.0)
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + support + 0.5).astype(np.int64), old)
    samples = first[:, None] + np.arange((last - first).max())
    distance = np.abs((samples - centers[:, None] + 0.5) * (1.0 / support))
    weights = np.where(samples < last[:, None], np.maximum(1.0 - distance, 0.0), 0.0)
    # cumsum adds from left to right as Pillow does; sum() pairs the terms and rounds differently.
    weights /= weights.cumsum(axis=1)[:, -1:]
    return np.floor(weights * _ONE + 0.5) / _ONE, first


def _band(weights: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, int]:
    """Some output rows' weights as a dense matrix over the input rows that they need.

    Returns:
        matrix (rows, needed) float64, and the lowest input row.
    """
    row, tap = np.nonzero(weights)
    sample = first[row] + tap
    lowest = int(sample.min())
    matrix = np.zeros((len(weights), int(sample.max()) + 1 - lowest))
    matrix[row, sample - lowest] = weights[row, tap]
    return matrix, lowest
