"""Pictures: predictions beside ground truth, and where each object's positive sample lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from torch import Tensor

from .errors import ConfigError
from .meta_arch import OneNet

__all__ = ["assign_samples", "draw_assignment", "draw_detections", "tile"]

_COLORS = colormap(rgb=True, maximum=1)[[0, 2, 4, 6, 8, 13, 16, 22, 38, 45]]


@torch.no_grad()
def assign_samples(model: OneNet, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Which sample the criterion's matcher gives to each object of an image.

    Args:
        model: in evaluation mode.
        inputs: of one image, as the training mapper makes it: "image" and "instances".

    Returns:
        For the P matched pairs: the object's index (P,), the centre x, y of its sample's anchor
        (P, 2) in pixels of ``inputs["image"]``, and the sample's level (P,), 0 for the finest.
    """
    images = model.preprocess_image([inputs])
    features = model.backbone(images.tensor)
    predictions = model.head([features[name] for name in model.head_in_features])
    gt = inputs["instances"].to(model.device)
    ((samples, gt_indices),) = model.criterion.matcher(predictions, [gt])
    anchors = predictions.anchors[samples]
    ends = torch.tensor(predictions.level_sizes, device=samples.device).cumsum(0)
    return (
        gt_indices,
        (anchors[:, :2] + anchors[:, 2:]) / 2,
        torch.bucketize(samples, ends, right=True),
    )


def draw_detections(
    image: np.ndarray, instances: Instances, class_names: list[str], height: int = 384
) -> np.ndarray:
    """Draws boxes with class names, and scores where there are any.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: with ``gt_boxes`` and ``gt_classes``, or with ``pred_boxes``, ``pred_classes``
            and ``scores``; in pixels of the image.
        class_names: of the K classes.
        height: of the picture, in pixels.

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
    picture, scale = _canvas(image, height)
    picture.overlay_instances(
        boxes=(boxes * scale).cpu().numpy(),
        labels=labels,
        assigned_colors=[_COLORS[c % len(_COLORS)] for c in classes],
        alpha=1.0,
    )
    return picture.get_output().get_image()


def draw_assignment(
    model: OneNet, inputs: dict[str, Any], image: np.ndarray, height: int = 384
) -> np.ndarray:
    """Draws each object's box, and a dot on the one sample that is its positive.

    The label tells the level's stride; a line joins box centre and sample.

    Args:
        model: see :func:`assign_samples`.
        inputs: see :func:`assign_samples`.
        image: (H, W, 3) uint8, RGB, of the size of ``inputs["image"]``.
        height: of the picture, in pixels.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    gt_indices, points, levels = (x.cpu() for x in assign_samples(model, inputs))
    shapes = model.backbone.output_shape()
    strides = [shapes[name].stride for name in model.head_in_features]
    boxes = inputs["instances"].gt_boxes[gt_indices]
    picture, scale = _canvas(image, height)
    colors = [_COLORS[int(i) % len(_COLORS)] for i in gt_indices]
    picture.overlay_instances(
        boxes=(boxes.tensor * scale).numpy(),
        labels=[f"stride {strides[level]}" for level in levels],
        assigned_colors=colors,
        alpha=1.0,
    )
    for center, point, color in zip(boxes.get_centers(), points, colors, strict=True):
        (x0, y0), (x1, y1) = (center * scale).tolist(), (point * scale).tolist()
        picture.draw_line([x0, x1], [y0, y1], color=color)
        picture.draw_circle((x1, y1), color="white", radius=7)
        picture.draw_circle((x1, y1), color=color, radius=5)
    return picture.get_output().get_image()


def tile(rows: list[list[np.ndarray]], gap: int = 8) -> np.ndarray:
    """Joins pictures of one height into rows, and rows into one picture, white between them."""
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


def _canvas(image: np.ndarray, height: int) -> tuple[Any, float]:
    """A Detectron2 Visualizer over the image resized to a height, and the scale of that."""
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
