"""Matching of detections to objects, duplicates, and crowding."""

from __future__ import annotations

import enum

import numpy as np
import torch
from numpy.typing import ArrayLike
from torchvision.ops import box_iou

__all__ = ["Status", "class_overlaps", "crowding", "match_detections"]


class Status(enum.IntEnum):
    """The result of matching a detection."""

    NEITHER = 0  # lies on no object of its class
    CLAIM = 1  # true positive
    DUPLICATE = 2  # lies only on objects claimed by better scores


def class_overlaps(
    boxes: ArrayLike, classes: ArrayLike, gt_boxes: ArrayLike, gt_classes: ArrayLike
) -> np.ndarray:
    """IoU of each detection with each object of its class; 0 with those of other classes.

    Args:
        boxes: (D, 4) corners in pixels.
        classes: (D,).
        gt_boxes: (G, 4) corners in pixels.
        gt_classes: (G,).

    Returns:
        (D, G), float64, so that an IoU of 3/10 equals 0.3.
    """
    first = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    second = torch.as_tensor(gt_boxes, dtype=torch.float64).reshape(-1, 4)
    ious = box_iou(first, second).nan_to_num(nan=0.0)  # 0/0 between two boxes without area
    same_class = np.asarray(classes)[:, None] == np.asarray(gt_classes)[None, :]
    return np.where(same_class, ious.numpy(), 0.0)


def match_detections(
    boxes: ArrayLike,
    scores: ArrayLike,
    classes: ArrayLike,
    gt_boxes: ArrayLike,
    gt_classes: ArrayLike,
    iou_thresh: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Classifies the detections of an image as claims, duplicates or neither.

    A detection *lies on* an object of its class if IoU >= ``iou_thresh``. In order of score (ties:
    as given), a detection claims the object of largest IoU (ties: the last, as in COCO) among the
    unclaimed objects that it lies on. If all of those are claimed, it is a duplicate of the one of
    largest IoU. If it lies on none, it is neither.

    This is COCO's matching without crowd regions: claims are its true positives, duplicates those
    false positives that lie on an object.

    Args:
        boxes: (D, 4) corners in pixels.
        scores: (D,).
        classes: (D,).
        gt_boxes: (G, 4) corners in pixels; the objects, without crowd regions.
        gt_classes: (G,).
        iou_thresh: in (0, 1].

    Returns:
        (D,) :class:`Status` values, and (D,) indices of the claimed or duplicated objects, -1 for
        neither; both int64.
    """
    ious = class_overlaps(boxes, classes, gt_boxes, gt_classes)
    status = np.full(len(ious), Status.NEITHER, dtype=np.int64)
    objects = np.full(len(ious), -1, dtype=np.int64)
    free = np.ones(ious.shape[1], dtype=bool)
    for detection in np.argsort(-np.asarray(scores), kind="stable"):
        lies_on = ious[detection] >= iou_thresh
        if not lies_on.any():
            continue
        claims = bool((lies_on & free).any())
        candidates = np.flatnonzero(lies_on & free if claims else lies_on)
        overlap = ious[detection, candidates]
        best = candidates[overlap == overlap.max()][-1]
        status[detection] = Status.CLAIM if claims else Status.DUPLICATE
        objects[detection] = best
        free[best] = False
    return status, objects


def crowding(gt_boxes: ArrayLike, gt_classes: ArrayLike) -> np.ndarray:
    """Crowding of each object of an image: its largest IoU with another object of its class.

    Args:
        gt_boxes: (G, 4) corners in pixels, without crowd regions.
        gt_classes: (G,).

    Returns:
        (G,) float64; 0 if it overlaps none.
    """
    ious = class_overlaps(gt_boxes, gt_classes, gt_boxes, gt_classes)
    np.fill_diagonal(ious, 0.0)
    return ious.max(axis=1, initial=0.0)
