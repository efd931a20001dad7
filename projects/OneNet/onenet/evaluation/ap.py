"""COCO's average precision, and class-wise NMS, of detections in memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.structures import BoxMode
from torchvision.ops import batched_nms

from .coco_api import coco_api

__all__ = ["Scene", "mean_ap", "nms_survivors", "precision_table"]


@dataclass(frozen=True)
class Scene:
    """Detections and ground truth of one image.

    Attributes:
        boxes: (D, 4) float32, corners in pixels.
        scores: (D,) float32.
        classes: (D,) int64.
        gt_boxes: (G, 4) float64, x, y, width, height in pixels, as in COCO, to avoid rounding.
        gt_classes: (G,) int64.
        is_crowd: (G,) bool, crowd regions.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    gt_boxes: np.ndarray
    gt_classes: np.ndarray
    is_crowd: np.ndarray

    def with_detections(self, keep: np.ndarray) -> Scene:
        """A copy with the detections of ``keep``, (D,) bool."""
        return replace(
            self, boxes=self.boxes[keep], scores=self.scores[keep], classes=self.classes[keep]
        )

    def with_ground_truth(self, keep: np.ndarray) -> Scene:
        """A copy with the ground truth of ``keep``, (G,) bool."""
        return replace(
            self,
            gt_boxes=self.gt_boxes[keep],
            gt_classes=self.gt_classes[keep],
            is_crowd=self.is_crowd[keep],
        )

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) as corners and classes (n,) of the objects, without crowd regions."""
        boxes = BoxMode.convert(self.gt_boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        return boxes[~self.is_crowd], self.gt_classes[~self.is_crowd]


def nms_survivors(scene: Scene, nms_thresh: float) -> np.ndarray:
    """The detections that class-wise NMS keeps.

    Args:
        scene: an image.
        nms_thresh: IoU threshold.

    Returns:
        (D,) bool.
    """
    keep = np.zeros(len(scene.scores), dtype=bool)
    if len(keep):
        boxes = torch.from_numpy(scene.boxes).double()
        # batched_nms separates classes by the largest coordinate, which needs coordinates >= 0
        survivors = batched_nms(
            boxes - boxes.min(),
            torch.from_numpy(scene.scores).double(),
            torch.from_numpy(scene.classes),
            nms_thresh,
        )
        keep[survivors.numpy()] = True
    return keep


def _index(coco: Any, annotations: list[dict], num_images: int, classes: Sequence[int]) -> Any:
    """Fills an empty COCO with annotations and gives them ids."""
    for i, annotation in enumerate(annotations, start=1):  # COCOeval: 0 is no match
        annotation["id"] = i
    coco.dataset = {
        "images": [{"id": i} for i in range(num_images)],
        "categories": [{"id": c} for c in classes],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _annotations(
    image_id: int, boxes: np.ndarray, classes: np.ndarray, key: str, values: np.ndarray
) -> list[dict]:
    """COCO annotations of boxes (n, 4), given as x, y, width, height, with another key's values."""
    columns = zip(boxes.tolist(), classes.tolist(), values.tolist(), strict=True)
    return [
        {"image_id": image_id, "category_id": c, "bbox": box, "area": box[2] * box[3], key: value}
        for box, c, value in columns
    ]


def precision_table(scenes: Sequence[Scene], max_dets_per_image: int) -> np.ndarray:
    """Precision by IoU threshold, recall and class, from COCOeval with area "all".

    Args:
        scenes: all images in the order of their ids.
        max_dets_per_image: COCOeval's maxDets, per class and image.

    Returns:
        (10, 101, K) in [0, 1]: IoU 0.50, 0.55, ..., 0.95; recall 0, 0.01, ..., 1; K classes with
        objects, possibly none.
    """
    classes = sorted({int(c) for s in scenes for c in s.gt_classes[~s.is_crowd]})
    if not classes:
        return np.zeros((10, 101, 0))
    ground_truth, detections = [], []
    for i, scene in enumerate(scenes):
        is_crowd = scene.is_crowd.astype(int)
        ground_truth += _annotations(i, scene.gt_boxes, scene.gt_classes, "iscrowd", is_crowd)
        boxes = BoxMode.convert(scene.boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        detections += _annotations(i, boxes, scene.classes, "score", scene.scores)
    coco, coco_eval = coco_api()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = coco_eval(
            _index(coco(), ground_truth, len(scenes), classes),
            _index(coco(), detections, len(scenes), classes),
            "bbox",
        )
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = [max_dets_per_image]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0]


def mean_ap(precision: np.ndarray) -> float:
    """Mean of (part of) a :func:`precision_table` in points, 0 to 100; nan if empty."""
    return float(precision.mean() * 100) if precision.size else float("nan")
