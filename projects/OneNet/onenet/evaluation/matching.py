"""Which detection finds which object, which one is a duplicate, and which objects are crowded."""

from __future__ import annotations

import enum

import numpy as np
import torch
from numpy.typing import ArrayLike
from torchvision.ops import box_iou

__all__ = ["Status", "class_overlaps", "crowding", "match_detections"]


class Status(enum.IntEnum):
    """What a detection is."""

    NEITHER = 0  # lies on no object of its class
    CLAIM = 1  # finds an object
    DUPLICATE = 2  # lies only on objects that better scores have found


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
        (D, G), float64: in float32 an IoU of 3/10 is not 0.3, and bins and thresholds would err.
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
    """Tells the detections of an image that find an object from duplicates and from others.

    A detection *lies on* an object if both have the same class and IoU >= ``iou_thresh``. By
    falling score (ties: as given) each detection claims, among the objects that it lies on and that
    nobody has claimed, the one of largest IoU (ties: the last, as COCO has it). If all objects that
    it lies on are claimed, it is a duplicate of the one of largest IoU. If it lies on none, it is
    neither.

    This is COCO's matching at that IoU, crowd regions aside: claims are its true positives, and
    duplicates those of its false positives that lie on an object.

    Args:
        boxes: (D, 4) corners in pixels.
        scores: (D,).
        classes: (D,).
        gt_boxes: (G, 4) corners in pixels; the objects, without crowd regions.
        gt_classes: (G,).
        iou_thresh: in (0, 1].

    Returns:
        status (D,) of :class:`Status` values, and objects (D,): the index of the object that the
        detection claims or is a duplicate of, -1 for neither. Both int64, in ``boxes`` order.
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
    """How crowded each object of an image is: its largest IoU with another one of its class.

    Args:
        gt_boxes: (G, 4) corners in pixels, without crowd regions.
        gt_classes: (G,).

    Returns:
        (G,) float64; 0 for an object that touches none of its class.
    """
    ious = class_overlaps(gt_boxes, gt_classes, gt_boxes, gt_classes)
    np.fill_diagonal(ious, 0.0)
    return ious.max(axis=1, initial=0.0)
