"""COCO's average precision of detections in memory, before and after NMS and of parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .matching import Pairs
from .scenes import Scenes

__all__ = ["IOU_THRESHOLDS", "RECALLS", "Precisions", "mean_ap"]

# COCOeval's own
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Precisions:
    """Precision tables of selections of the same detections, equal to COCOeval's with area "all".

    Pairs and their IoUs, which take most of COCOeval's time, are computed once.

    Attributes:
        scenes: detections and objects.
        pairs: with IoU >= 0.5.
        max_dets_per_image: COCOeval's maxDets, per class and image.
    """

    scenes: Scenes
    pairs: Pairs
    max_dets_per_image: int

    def table(
        self, detections: np.ndarray | None = None, objects: np.ndarray | None = None
    ) -> np.ndarray:
        """Precision by IoU threshold, recall and class.

        Args:
            detections: (D,) bool, those that count; None for all.
            objects: (O,) bool, those that count; None for all. All crowd regions do.

        Returns:
            (10, 101, K) in [0, 1]: IoU 0.50, 0.55, ..., 0.95; recall 0, 0.01, ..., 1; K classes
            with objects, possibly none.
        """
        scenes, pairs = self.scenes, self.pairs
        if detections is None:
            detections = np.ones(len(scenes.scores), dtype=bool)
        if objects is None:
            objects = np.ones(len(scenes.object_classes), dtype=bool)
        detections = self._within_limit(detections)
        claimed_by = pairs.claims(
            IOU_THRESHOLDS,
            len(objects),
            detections[pairs.detections] & objects[pairs.objects],
        )
        classes, num_objects = np.unique(scenes.object_classes[objects], return_counts=True)
        table = np.zeros((len(IOU_THRESHOLDS), len(RECALLS), len(classes)))
        for row, (threshold, claims) in enumerate(zip(IOU_THRESHOLDS, claimed_by, strict=True)):
            claims = claims[claims >= 0]
            counts = detections & (scenes.crowd_overlaps < threshold)
            counts[claims] = True
            table[row] = self._interpolated(claims, counts, classes, num_objects)
        return table

    def _within_limit(self, detections: np.ndarray) -> np.ndarray:
        """Of the detections that count, the best of each image and class."""
        chosen = np.flatnonzero(detections)
        groups = self.scenes.groups[chosen]
        _, sizes = np.unique(groups, return_counts=True)
        if sizes.max(initial=0) <= self.max_dets_per_image:
            return detections
        chosen = chosen[np.lexsort((-self.scenes.scores[chosen], groups))]
        rank = np.arange(len(chosen)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        within = np.zeros_like(detections)
        within[chosen[rank < self.max_dets_per_image]] = True
        return within

    def _interpolated(
        self, claims: np.ndarray, counts: np.ndarray, classes: np.ndarray, num_objects: np.ndarray
    ) -> np.ndarray:
        """(101, K) highest precision at each recall or above.

        Only at a true positive may the recall rise and the precision be the highest of those after
        it, so the others are counted and not looked at.

        Args:
            claims: indices of the true positives.
            counts: (D,) bool, true and false positives.
            classes: (K,).
            num_objects: (K,).
        """
        order, sorted_classes, ranks = self._by_class_and_score
        starts = np.searchsorted(sorted_classes, classes)
        stops = np.searchsorted(sorted_classes, classes, "right")
        counted = np.append(0, np.cumsum(counts[order]))
        ranks = np.sort(ranks[claims])
        highest = np.zeros((len(RECALLS), len(classes)))
        for column, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            own = ranks[slice(*np.searchsorted(ranks, (start, stop)))]
            true_positives = np.arange(1, len(own) + 1)
            precision = true_positives / (counted[own + 1] - counted[start] + np.spacing(1))
            precision = np.maximum.accumulate(precision[::-1])[::-1]
            at = np.searchsorted(true_positives / num_objects[column], RECALLS)
            reached = at < len(own)
            highest[reached, column] = precision[at[reached]]
        return highest

    @cached_property
    def _by_class_and_score(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The detections by class, then by score (ties: as given); their classes; their ranks."""
        order = np.lexsort((-self.scenes.scores, self.scenes.classes))
        ranks = np.empty_like(order)
        ranks[order] = np.arange(len(order))
        return order, self.scenes.classes[order], ranks


def mean_ap(precision: np.ndarray) -> float:
    """Mean of (part of) a table of :class:`Precisions` in points, 0 to 100; nan if empty."""
    return float(precision.mean() * 100) if precision.size else float("nan")
