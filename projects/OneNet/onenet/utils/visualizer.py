"""Drawing of detections and ground truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap

from .errors import ConfigError

__all__ = ["COLORS", "canvas", "draw_detections", "enlarged_height", "tile"]

COLORS = colormap(rgb=True, maximum=1)[[0, 2, 4, 6, 8, 13, 16, 22, 38, 45]]


def draw_detections(
    image: np.ndarray, instances: Instances, class_names: list[str], height: int = 384
) -> np.ndarray:
    """Draws boxes with class names and, for predictions, scores.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: with ``gt_boxes`` and ``gt_classes``, or with ``pred_boxes``, ``pred_classes``
            and ``scores``; in pixels of the image.
        class_names: names of the K classes.
        height: of the result, in pixels.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    predicted = instances.has("pred_boxes")
    boxes = (instances.pred_boxes if predicted else instances.gt_boxes).tensor
    classes = (instances.pred_classes if predicted else instances.gt_classes).tolist()
    labels = [class_names[c] for c in classes]
    if predicted:
        labels = [
            f"{label} {score:.2f}"
            for label, score in zip(labels, instances.scores.tolist(), strict=True)
        ]
    picture, scale = canvas(image, height)
    picture.overlay_instances(
        boxes=(boxes * scale).cpu().numpy(),
        labels=labels,
        assigned_colors=[COLORS[c % len(COLORS)] for c in classes],
        alpha=1.0,
    )
    return picture.get_output().get_image()


def enlarged_height(image: np.ndarray, least: int) -> int:
    """Height for :func:`draw_detections` at which labels do not hide a small image.

    Args:
        image: (H, W, 3).
        least: wanted height in pixels.

    Returns:
        ``least``, less for images that would be wider than 4096 pixels, and at least H.
    """
    height, width = image.shape[:2]
    return max(height, min(least, height * 4096 // width))


def tile(rows: list[list[np.ndarray]], gap: int = 8) -> np.ndarray:
    """Joins pictures of equal height into rows, and rows into one picture, with white gaps."""
    joined = []
    for pictures in rows:
        bordered = [np.pad(p, ((gap, 0), (gap, 0), (0, 0)), constant_values=255) for p in pictures]
        joined.append(np.concatenate(bordered, axis=1))
    width = max(row.shape[1] for row in joined)
    joined = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in joined
    ]
    return np.pad(np.concatenate(joined), ((0, gap), (0, gap), (0, 0)), constant_values=255)


def canvas(image: np.ndarray, height: int) -> tuple[Any, float]:
    """Returns a Detectron2 Visualizer of the image resized to a height, and the scale factor."""
    try:
        import cv2
        from detectron2.utils.visualizer import Visualizer
    except ImportError as error:
        raise ConfigError(
            "Pictures need OpenCV: pip install opencv-python-headless (or opencv-python)."
        ) from error
    scale = height / image.shape[0]
    size = (round(image.shape[1] * scale), height)
    return Visualizer(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)), scale
