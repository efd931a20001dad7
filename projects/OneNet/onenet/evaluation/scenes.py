"""Detections and ground truth of a dataset as flat arrays, and overlaps between boxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torchvision.ops import nms

__all__ = ["Scenes", "crowding", "nms_survivors", "overlapping_pairs"]

_MOST_PAIRS = 2**16  # compared at a time, so that they fit into the cache


@dataclass(frozen=True)
class Scenes:
    """Detections and ground truth of N images.

    Both are ordered by image. Boxes are x, y, width and height in pixels, as in COCO, to avoid
    rounding.

    Attributes:
        num_images: N.
        images: (D,) int64, each detection's image, from 0 to N - 1.
        boxes: (D, 4) float64.
        scores: (D,) float64.
        classes: (D,) int64.
        gt_images: (G,) int64.
        gt_boxes: (G, 4) float64.
        gt_classes: (G,) int64.
        is_crowd: (G,) bool, crowd regions. The others are the objects.
    """

    num_images: int
    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    gt_images: np.ndarray
    gt_boxes: np.ndarray
    gt_classes: np.ndarray
    is_crowd: np.ndarray

    @cached_property
    def _num_classes(self) -> int:
        return 1 + max(self.classes.max(initial=0), self.gt_classes.max(initial=0))

    @cached_property
    def groups(self) -> np.ndarray:
        """(D,) a number for each image and class."""
        return self.images * self._num_classes + self.classes

    @cached_property
    def gt_groups(self) -> np.ndarray:
        """(G,), see ``groups``."""
        return self.gt_images * self._num_classes + self.gt_classes

    @cached_property
    def object_boxes(self) -> np.ndarray:
        """(O, 4) ``gt_boxes`` of the objects."""
        return self.gt_boxes[~self.is_crowd]

    @cached_property
    def object_classes(self) -> np.ndarray:
        """(O,) ``gt_classes`` of the objects."""
        return self.gt_classes[~self.is_crowd]

    @cached_property
    def object_groups(self) -> np.ndarray:
        """(O,) ``gt_groups`` of the objects."""
        return self.gt_groups[~self.is_crowd]

    @cached_property
    def crowd_overlaps(self) -> np.ndarray:
        """(D,) largest share of each detection's area in a crowd region of its class."""
        shares = np.zeros(len(self.scores))
        first, _, values = overlapping_pairs(
            (self.groups, self.boxes),
            (self.gt_groups[self.is_crowd], self.gt_boxes[self.is_crowd]),
            shares_of_first=True,
        )
        np.maximum.at(shares, first, values)
        return shares


def overlapping_pairs(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    min_iou: float = 0.0,
    shares_of_first: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the pairs of boxes of the same group that overlap, by COCO's formula in float64.

    Args:
        first: groups (A,) and boxes (A, 4) as x, y, width, height.
        second: groups (B,) and boxes (B, 4).
        min_iou: least IoU of a pair.
        shares_of_first: whether to divide by the area of the first box in place of the union, as
            COCO does for crowd regions.

    Returns:
        Three arrays (P,): indices into the first, indices into the second, and IoUs > 0; ordered by
        first, then by second.
    """
    order = np.argsort(second[0], kind="stable")
    groups = second[0][order]
    starts = np.searchsorted(groups, first[0])
    counts = np.searchsorted(groups, first[0], "right") - starts
    sides, other_sides = _sides(first[1]), _sides(second[1])
    parts = []
    for rows in _chunks(counts):
        a = np.repeat(rows, counts[rows])
        skipped = starts[rows] - (np.cumsum(counts[rows]) - counts[rows])
        b = order[np.arange(len(a)) + np.repeat(skipped, counts[rows])]
        ious = _ious(sides[:, a], other_sides[:, b], shares_of_first)
        kept = (ious > 0) & (ious >= min_iou)
        parts.append((a[kept], b[kept], ious[kept]))
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def _chunks(counts: np.ndarray) -> list[np.ndarray]:
    """Indices of the counts above 0, in pieces of limited sums; at least one piece."""
    rows = np.flatnonzero(counts)
    pieces = np.cumsum(counts[rows]) // _MOST_PAIRS
    return np.split(rows, np.flatnonzero(np.diff(pieces)) + 1)


def _sides(boxes: np.ndarray) -> np.ndarray:
    """(5, n) left, top, right, bottom, area."""
    x, y, width, height = boxes.T
    return np.stack((x, y, x + width, y + height, width * height))


def _ious(a: np.ndarray, b: np.ndarray, shares_of_a: bool) -> np.ndarray:
    """IoU of boxes with boxes, both (5, P) from :func:`_sides`; 0 for boxes without area."""
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    whole = a[4] if shares_of_a else a[4] + b[4] - intersection
    return np.divide(intersection, whole, out=np.zeros(len(whole)), where=intersection > 0)


def crowding(groups: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Crowding of each object: its largest IoU with another object of its image and class.

    Args:
        groups: (O,) a number for each image and class.
        boxes: (O, 4) x, y, width, height, without crowd regions.

    Returns:
        (O,) float64; 0 if it overlaps none.
    """
    largest = np.zeros(len(groups))
    first, second, ious = overlapping_pairs((groups, boxes), (groups, boxes))
    others = first != second
    np.maximum.at(largest, first[others], ious[others])
    return largest


def nms_survivors(scenes: Scenes, nms_thresh: float) -> np.ndarray:
    """The detections that class-wise NMS keeps.

    Args:
        scenes: detections.
        nms_thresh: IoU threshold.

    Returns:
        (D,) bool.
    """
    corners = scenes.boxes.copy()
    corners[:, 2:] += corners[:, :2]
    # Classes side by side, so that one call for each image does
    span = corners.max(initial=0) - corners.min(initial=0)
    corners[:, ::2] += scenes.classes[:, None] * np.ceil(span + 1)
    boxes, scores = torch.from_numpy(corners), torch.from_numpy(scenes.scores)
    keep = np.zeros(len(scores), dtype=bool)
    bounds = np.searchsorted(scenes.images, np.arange(scenes.num_images + 1)).tolist()
    for start, stop in zip(bounds, bounds[1:], strict=False):
        keep[start + nms(boxes[start:stop], scores[start:stop], nms_thresh).numpy()] = True
    return keep
