"""How much a detector still needs NMS, from its detections; see docs/end_to_end.md."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from .ap import Precisions, mean_ap
from .matching import Pairs, Status, match_scenes
from .scenes import Scenes, crowding, nms_survivors
from .thresholds import calibrate

__all__ = ["CROWDING_BINS", "crowding_bins", "measure", "report_table"]

THRESHOLDS = [round(0.05 * i, 2) for i in range(1, 20)]  # of the curves
MAIN_THRESHOLDS = (0.1, 0.3, 0.5)  # of the table
CROWDING_BINS = ("none", "under_0.3", "0.3_to_0.5", "over_0.5")


def measure(
    scenes: Scenes,
    dataset: str,
    class_names: Sequence[str] | None,
    *,
    nms_thresh: float = 0.6,
    iou_thresh: float = 0.5,
    max_dets_per_image: int = 100,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Measures how much a detector still needs NMS.

    Args:
        scenes: detections and ground truth; at least one image.
        dataset: its name.
        class_names: of the K classes; None for no thresholds.
        nms_thresh: IoU threshold of NMS.
        iou_thresh: least IoU at which a detection lies on an object.
        max_dets_per_image: COCOeval's limit per class and image.

    Returns:
        The content of ``end_to_end.json``, whose "results" are defined in
        :class:`onenet.evaluation.EndToEndEvaluator`, and that of ``thresholds.json`` or None. nan
        becomes null in the files.
    """
    pairs = Pairs.find(scenes, min(0.5, iou_thresh))
    status, objects = match_scenes(scenes, pairs, iou_thresh)
    object_bins = crowding_bins(crowding(scenes.object_groups, scenes.object_boxes))
    tally = _tally(scenes, status, objects, object_bins)
    survives = nms_survivors(scenes, nms_thresh)
    precisions = Precisions(scenes, pairs, max_dets_per_image)
    before, after = _both_ways(precisions, survives)
    results = {
        **_ap_metrics(before, after),
        **_ap_metrics(before[0], after[0], "50"),
        **tally.metrics(scenes.num_images),
    }
    bins = []
    for index, name in enumerate(CROWDING_BINS):
        inside = object_bins == index
        lies_here = _lies_inside(scenes, pairs, inside, iou_thresh)
        metrics = {
            **_ap_metrics(*_both_ways(precisions, survives, lies_here, inside)),
            **tally.metrics(scenes.num_images, index),
        }
        results.update({f"{metric}-{name}": value for metric, value in metrics.items()})
        bins.append({"name": name, "num_objects": int(inside.sum()), **metrics})
    report = {
        "dataset": dataset,
        "num_images": scenes.num_images,
        "num_objects": len(object_bins),
        "annotations": _digest(scenes),
        "nms_thresh": nms_thresh,
        "iou_thresh": iou_thresh,
        "results": results,
        "curves": {
            "score": THRESHOLDS,
            "duplicates_per_image": _per_image(tally.duplicate_scores, scenes.num_images),
            "claims_per_image": _per_image(tally.claim_scores, scenes.num_images),
            "recall": [i / 100 for i in range(101)],
            "precision": _mean_over_classes(before[0]),
            "precision_after_nms": _mean_over_classes(after[0]),
        },
        "crowding": bins,
    }
    if class_names is None:
        return report, None
    thresholds = {
        "dataset": dataset,
        "iou_thresh": iou_thresh,
        "weights": None,
        "classes": calibrate(scenes, status == Status.CLAIM, class_names, iou_thresh),
    }
    return report, thresholds


def report_table(report: dict[str, Any]) -> str:
    """The results of all objects and by crowding, as a table in Markdown."""
    rows = [{"name": "all", "num_objects": report["num_objects"], **report["results"]}]
    metrics = list(report["crowding"][0])
    return tabulate(
        [[row[metric] for metric in metrics] for row in rows + report["crowding"]],
        headers=["crowding", "objects", *metrics[2:]],
        tablefmt="pipe",
        floatfmt=".3f",
    )


def crowding_bins(overlaps: np.ndarray) -> np.ndarray:
    """The bin of each object, as an index into ``CROWDING_BINS``.

    Args:
        overlaps: (G,) from :func:`onenet.evaluation.scenes.crowding`: 0 is "none", 0 < x < 0.3
            "under_0.3", 0.3 <= x <= 0.5 "0.3_to_0.5", and x > 0.5 "over_0.5".

    Returns:
        (G,) int64.
    """
    return np.select([overlaps == 0, overlaps < 0.3, overlaps <= 0.5], [0, 1, 2], 3)


@dataclass(frozen=True)
class _Tally:
    """Claims, duplicates and objects of all images, as flat arrays."""

    object_bins: np.ndarray
    claim_scores: np.ndarray
    claim_bins: np.ndarray
    score_gaps: np.ndarray
    duplicate_scores: np.ndarray
    duplicate_bins: np.ndarray

    def metrics(self, num_images: int, bin_index: int | None = None) -> dict[str, float]:
        """``recall``, ``duplicates@t`` and ``score_gap`` of all objects, or of those of one bin."""
        scores, gaps, num_objects = self.duplicate_scores, self.score_gaps, len(self.object_bins)
        if bin_index is not None:
            scores = scores[self.duplicate_bins == bin_index]
            gaps = gaps[self.claim_bins == bin_index]
            num_objects = int((self.object_bins == bin_index).sum())
        duplicates = _per_image(scores, num_images, MAIN_THRESHOLDS)
        return {
            "recall": 100 * len(gaps) / num_objects if num_objects else float("nan"),
            # nan without objects: 0 would look like a good result
            **{
                f"duplicates@{t}": n if len(self.object_bins) else float("nan")
                for t, n in zip(MAIN_THRESHOLDS, duplicates, strict=True)
            },
            "score_gap": float(gaps.mean()) if len(gaps) else float("nan"),
        }


def _tally(
    scenes: Scenes, status: np.ndarray, objects: np.ndarray, object_bins: np.ndarray
) -> _Tally:
    claim, duplicate = status == Status.CLAIM, status == Status.DUPLICATE
    best_duplicate = np.zeros(len(object_bins))
    np.maximum.at(best_duplicate, objects[duplicate], scenes.scores[duplicate])
    return _Tally(
        object_bins=object_bins,
        claim_scores=scenes.scores[claim],
        claim_bins=object_bins[objects[claim]],
        score_gaps=scenes.scores[claim] - best_duplicate[objects[claim]],
        duplicate_scores=scenes.scores[duplicate],
        duplicate_bins=object_bins[objects[duplicate]],
    )


def _both_ways(
    precisions: Precisions,
    survives: np.ndarray,
    detections: np.ndarray | None = None,
    objects: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision tables of a part before and after NMS."""
    if not len(survives):  # nan, as in COCOEvaluator
        return np.zeros((10, 101, 0)), np.zeros((10, 101, 0))
    before = precisions.table(detections, objects)
    kept = survives if detections is None else survives & detections
    if kept.sum() == (len(kept) if detections is None else detections.sum()):
        return before, before
    return before, precisions.table(kept, objects)


def _lies_inside(scenes: Scenes, pairs: Pairs, inside: np.ndarray, iou_thresh: float) -> np.ndarray:
    """(D,) bool: detections on no object, or whose most overlapped one is of ``inside``, (O,)."""
    here, there = np.zeros((2, len(scenes.scores)))
    is_here = inside[pairs.objects]
    np.maximum.at(here, pairs.detections[is_here], pairs.ious[is_here])
    np.maximum.at(there, pairs.detections[~is_here], pairs.ious[~is_here])
    return (there < iou_thresh) | (here >= there)


def _per_image(
    scores: np.ndarray, num_images: int, thresholds: Sequence[float] = THRESHOLDS
) -> list[float]:
    """Number of scores >= each threshold, divided by the number of images."""
    # In float32, as the scores, so that 0.7 >= 0.7
    limits = np.asarray(thresholds, dtype=np.float32)
    counts = (np.asarray(scores, dtype=np.float32)[None, :] >= limits[:, None]).sum(axis=1)
    return [int(count) / num_images if num_images else float("nan") for count in counts]


def _ap_metrics(before: np.ndarray, after: np.ndarray, suffix: str = "") -> dict[str, float]:
    ap, ap_after = mean_ap(before), mean_ap(after)
    return {
        f"AP{suffix}": ap,
        f"AP{suffix}_after_NMS": ap_after,
        f"NMS_gap{suffix}": ap_after - ap,
    }


def _mean_over_classes(precision: np.ndarray) -> list[float]:
    """From (101, K) to 101 means; all nan where K is 0."""
    if not precision.size:
        return [float("nan")] * len(precision)
    return precision.mean(axis=1).tolist()


def _digest(scenes: Scenes) -> str:
    """Hash of the ground truth, as the annotations of a dataset's name may change."""
    digest = hashlib.sha256()
    bounds = np.searchsorted(scenes.gt_images, np.arange(scenes.num_images + 1))
    for start, stop in zip(bounds, bounds[1:], strict=False):
        for values in (scenes.gt_boxes, scenes.gt_classes, scenes.is_crowd):
            digest.update(f"{stop - start} ".encode() + values[start:stop].tobytes())
    return digest.hexdigest()[:16]
