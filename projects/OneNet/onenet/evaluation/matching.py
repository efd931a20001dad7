"""Matching of detections to objects, and duplicates."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .scenes import Scenes, overlapping_pairs

__all__ = ["Pairs", "Status", "match_detections", "match_scenes"]


class Status(enum.IntEnum):
    """The result of matching a detection."""

    NEITHER = 0  # lies on no object of its class
    CLAIM = 1  # true positive
    DUPLICATE = 2  # lies only on objects claimed by better scores


@dataclass(frozen=True)
class Pairs:
    """Detections and the objects of their image and class that they overlap, in rounds.

    The n-th round has the n-th detection, in order of score, of each image and class. No two
    detections of a round compete for an object, so that a round is matched at once.

    Attributes:
        detections: (P,) in order of rounds.
        objects: (P,) indices of objects.
        ious: (P,).
        rounds: first pair of each round, and P.
    """

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray
    rounds: np.ndarray

    @classmethod
    def find(cls, scenes: Scenes, min_iou: float) -> Pairs:
        """Finds the pairs with an IoU of at least ``min_iou``."""
        detections, objects, ious = overlapping_pairs(
            (scenes.groups, scenes.boxes), (scenes.object_groups, scenes.object_boxes), min_iou
        )
        paired = detections[np.diff(detections, prepend=-1) != 0]
        # By score in each group; ties: as given
        paired = paired[np.lexsort((-scenes.scores[paired], scenes.groups[paired]))]
        groups = scenes.groups[paired]
        position = np.arange(len(paired))
        is_first = np.diff(groups, prepend=-1) != 0
        turn = np.zeros(len(scenes.scores), dtype=np.int64)
        turn[paired] = position - np.maximum.accumulate(np.where(is_first, position, 0))
        order = np.argsort(turn[detections], kind="stable")
        rounds = np.flatnonzero(np.diff(turn[detections[order]], prepend=-1, append=-1))
        return cls(detections[order], objects[order], ious[order], rounds)

    def claims(
        self, iou_thresh: np.ndarray, num_objects: int, takes_part: np.ndarray | None = None
    ) -> np.ndarray:
        """Matches greedily, as COCO does; see :func:`match_detections`.

        Args:
            iou_thresh: (T,) each is matched by itself.
            num_objects: O.
            takes_part: (P,) bool, the pairs that count; None for all.

        Returns:
            (T, O) int64: the detection that claims each object, or -1.
        """
        claimed_by = np.full((len(iou_thresh), num_objects), -1)
        for start, stop in zip(self.rounds, self.rounds[1:], strict=False):
            pairs = np.arange(start, stop)
            if takes_part is not None:
                pairs = pairs[takes_part[start:stop]]
            if not len(pairs):
                continue
            detections, objects = self.detections[pairs], self.objects[pairs]
            can_claim = (self.ious[pairs] >= iou_thresh[:, None]) & (claimed_by[:, objects] < 0)
            ious = np.where(can_claim, self.ious[pairs], -1.0)
            chosen = _last_maximum(ious, np.flatnonzero(np.diff(detections, prepend=-1)))
            rows, columns = np.nonzero(np.take_along_axis(can_claim, chosen, axis=1))
            claimed = chosen[rows, columns]
            claimed_by[rows, objects[claimed]] = detections[claimed]
        return claimed_by


def _last_maximum(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(T, S) index of the last maximum of each of the S segments of (T, P)."""
    counts = np.diff(starts, append=values.shape[1])
    largest = np.repeat(np.maximum.reduceat(values, starts, axis=1), counts, axis=1)
    indices = np.where(values == largest, np.arange(values.shape[1]), -1)
    return np.maximum.reduceat(indices, starts, axis=1)


def match_scenes(scenes: Scenes, pairs: Pairs, iou_thresh: float) -> tuple[np.ndarray, np.ndarray]:
    """Classifies all detections; see :func:`match_detections`.

    Args:
        scenes: detections and objects.
        pairs: theirs, of an IoU of at most ``iou_thresh`` and above.
        iou_thresh: in (0, 1].

    Returns:
        (D,) :class:`Status` values, and (D,) indices of the claimed or duplicated objects, -1 for
        neither; both int64.
    """
    status = np.full(len(scenes.scores), Status.NEITHER, dtype=np.int64)
    objects = np.full(len(status), -1, dtype=np.int64)
    lies_on = np.flatnonzero(pairs.ious >= iou_thresh)
    if not len(lies_on):
        return status, objects
    detections = pairs.detections[lies_on]
    starts = np.flatnonzero(np.diff(detections, prepend=-1))
    (largest,) = _last_maximum(pairs.ious[None, lies_on], starts)
    status[detections] = Status.DUPLICATE
    objects[detections[starts]] = pairs.objects[lies_on[largest]]
    (claimed_by,) = pairs.claims(np.array([iou_thresh]), len(scenes.object_groups))
    claimed = np.flatnonzero(claimed_by >= 0)
    status[claimed_by[claimed]] = Status.CLAIM
    objects[claimed_by[claimed]] = claimed
    return status, objects


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
    scenes = Scenes(
        1,
        np.zeros(len(scores), dtype=np.int64),
        _from_corners(boxes),
        np.asarray(scores, dtype=float),
        np.asarray(classes, dtype=np.int64),
        np.zeros(len(gt_classes), dtype=np.int64),
        _from_corners(gt_boxes),
        np.asarray(gt_classes, dtype=np.int64),
        np.zeros(len(gt_classes), dtype=bool),
    )
    return match_scenes(scenes, Pairs.find(scenes, iou_thresh), iou_thresh)


def _from_corners(boxes: ArrayLike) -> np.ndarray:
    """(n, 4) x, y, width, height."""
    corners = np.asarray(boxes, dtype=float).reshape(-1, 4)
    return np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)
