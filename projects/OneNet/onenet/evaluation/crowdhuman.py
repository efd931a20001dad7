"""CrowdHuman's metrics: AP50, log-average miss rate, recall and Jaccard index.

Definitions are exactly those of the evaluators behind published numbers: the toolkit that CrowdDet
(arXiv 2003.09163) and OneNet share for AP, miss rate and recall, and CrowdDet's for the Jaccard
index. The implementation is independent, and processes all images at once.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate

from ..utils.errors import DataError
from ..utils.files import write_json

__all__ = ["CrowdHumanEvaluator", "CrowdImage", "crowdhuman_report"]

logger = logging.getLogger(__name__)

FPPI_POINTS = (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0)
"""False positives per image at which miss rates are averaged (Caltech's, rounded as published)."""

SCORE_THRESHOLDS = tuple(0.1 * i for i in range(10))
"""Score thresholds of the Jaccard index, unrounded as in CrowdDet."""

_OVERLAP = 0.5  # threshold of the IoU with an object, and of the share on an ignore region
_EPSILON = 1e-6  # in every denominator, as in the public evaluators


@dataclass(frozen=True)
class CrowdImage:
    """Detections and ground truth of one image.

    Attributes:
        boxes: (D, 4) corners in pixels; may leave the image.
        scores: (D,).
        gt_boxes: (G, 4) corners in pixels; may leave the image.
        is_ignore: (G,) bool, ignore regions.
        height: of the image in pixels.
        width: of the image in pixels.
    """

    boxes: np.ndarray
    scores: np.ndarray
    gt_boxes: np.ndarray
    is_ignore: np.ndarray
    height: int
    width: int

    def clip(self, boxes: np.ndarray) -> np.ndarray:
        """Clips (n, 4) boxes to the image. As in the public evaluators, one pixel remains of a box
        beyond the right or lower edge.
        """
        limits = [self.width - 1, self.height - 1, self.width, self.height]
        return np.clip(np.asarray(boxes, dtype=np.float64), 0, limits)


@dataclass(frozen=True)
class _Pairs:
    """Detections (D) and objects (G) of all images, and the pairs (E) with IoU > 0.5.

    Attributes:
        num_images: N.
        scores: (D,) float64.
        det_image: (D,) the image's index.
        det_ignored: (D,) bool, lies on an ignore region.
        gt_image: (G,) the image's index.
        gt_ignored: (G,) bool, an object that lies on an ignore region.
        det: (E,) index of the detection.
        gt: (E,) index of the object.
        iou: (E,), pairs are sorted by object, then by falling IoU.
    """

    num_images: int
    scores: np.ndarray
    det_image: np.ndarray
    det_ignored: np.ndarray
    gt_image: np.ndarray
    gt_ignored: np.ndarray
    det: np.ndarray
    gt: np.ndarray
    iou: np.ndarray


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _intersections(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) intersection areas of (n, 4) and (m, 4) boxes."""
    x0, y0, x1, y1 = (boxes[:, i, None] for i in range(4))
    width = np.minimum(x1, others[:, 2]) - np.maximum(x0, others[:, 0])
    height = np.minimum(y1, others[:, 3]) - np.maximum(y0, others[:, 1])
    return width.clip(min=0) * height.clip(min=0)


def _lies_on(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """(n,) bool: whether more than half of a box's area is on one of the regions."""
    if not len(regions):
        return np.zeros(len(boxes), dtype=bool)
    share = _intersections(boxes, regions) / (_areas(boxes)[:, None] + _EPSILON)
    return (share > _OVERLAP).any(axis=1)


def _pair_up(images: Sequence[CrowdImage]) -> _Pairs:
    """Finds the overlapping pairs of each image, with indices over all images."""
    parts: list[dict[str, np.ndarray]] = []
    num_dets = num_objects = 0
    for index, image in enumerate(images):
        boxes, gt_boxes = image.clip(image.boxes), image.clip(image.gt_boxes)
        objects, regions = gt_boxes[~image.is_ignore], gt_boxes[image.is_ignore]
        shared = _intersections(boxes, objects)
        iou = shared / (_areas(boxes)[:, None] + _areas(objects) - shared + _EPSILON)
        det, gt = np.nonzero(iou > _OVERLAP)
        parts.append(
            {
                "scores": np.asarray(image.scores, dtype=np.float64),
                "det_image": np.full(len(boxes), index),
                "det_ignored": _lies_on(boxes, regions),
                "gt_image": np.full(len(objects), index),
                "gt_ignored": _lies_on(objects, regions),
                "det": det + num_dets,
                "gt": gt + num_objects,
                "iou": iou[det, gt],
            }
        )
        num_dets += len(boxes)
        num_objects += len(objects)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((-joined["iou"], joined["gt"]))
    joined.update({name: joined[name][order] for name in ("det", "gt", "iou")})
    return _Pairs(num_images=len(images), **joined)


def _claims(pairs: _Pairs) -> np.ndarray:
    """(D,) bool: the detections that take an object, by Caltech's greedy matching.

    In order of score (ties: as given), a detection takes the free object of largest IoU (ties: the
    first).
    """
    rank = np.empty(len(pairs.scores), dtype=np.int64)
    rank[np.argsort(-pairs.scores, kind="stable")] = np.arange(len(rank))
    order = np.lexsort((pairs.gt, -pairs.iou, rank[pairs.det]))
    claims = np.zeros(len(pairs.scores), dtype=bool)
    is_taken = np.zeros(len(pairs.gt_image), dtype=bool)
    for det, gt in zip(pairs.det[order].tolist(), pairs.gt[order].tolist(), strict=True):
        if not (claims[det] or is_taken[gt]):
            claims[det] = is_taken[gt] = True
    return claims


def _heaviest_matching(pairs: _Pairs, near: np.ndarray) -> np.ndarray:
    """Indices of each image's one-to-one matching of largest total IoU among the pairs `near`."""
    if not len(near):
        return near
    images = pairs.gt_image[pairs.gt[near]]
    chosen = []
    for part in np.split(near, np.flatnonzero(np.diff(images)) + 1):
        rows = np.unique(pairs.gt[part], return_inverse=True)[1]
        columns = np.unique(pairs.det[part], return_inverse=True)[1]
        weights = np.zeros((rows.max() + 1, columns.max() + 1))
        weights[rows, columns] = pairs.iou[part]
        index = np.full(weights.shape, -1)
        index[rows, columns] = part
        chosen.append(index[linear_sum_assignment(weights, maximize=True)])
    found = np.concatenate(chosen)
    return found[found >= 0]  # pairs that do not overlap have weight 0


def _jaccard_index(pairs: _Pairs, threshold: float) -> float:
    """Mean over the images of k / (n + m - k), in percent; see :func:`crowdhuman_report`."""
    kept = pairs.scores > threshold
    near = np.flatnonzero(kept[pairs.det])
    found = _heaviest_matching(pairs, near)
    det_free, gt_free = np.ones_like(pairs.det_ignored), np.ones_like(pairs.gt_ignored)
    det_free[pairs.det[found]] = False
    gt_free[pairs.gt[found]] = False

    def count(image: np.ndarray) -> np.ndarray:
        return np.bincount(image, minlength=pairs.num_images)

    k = count(pairs.gt_image[pairs.gt[found]])
    n = count(pairs.det_image[kept & ~(det_free & pairs.det_ignored)])
    m = count(pairs.gt_image[~(gt_free & pairs.gt_ignored)])
    num_images = np.count_nonzero((n > 0) | (m > 0))
    ratios = k / (n + m - k + _EPSILON)
    return float(100 * ratios.sum() / num_images) if num_images else float("nan")


def _curve_metrics(pairs: _Pairs) -> tuple[dict[str, float], list[float]]:
    """AP50, mMR and recall in percent, and the miss rates in percent at ``FPPI_POINTS``."""
    claims = _claims(pairs)
    order = np.argsort(-pairs.scores, kind="stable")
    hits = claims[order[claims[order] | ~pairs.det_ignored[order]]]
    if not len(hits):
        return {"AP50": 0.0, "mMR": 100.0, "recall": 0.0}, [100.0] * len(FPPI_POINTS)
    found = np.cumsum(hits)
    recall, precision = found / len(pairs.gt_image), found / np.arange(1, len(hits) + 1)
    ap = np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2)
    fppi = np.cumsum(~hits) / pairs.num_images
    reached = np.searchsorted(fppi, FPPI_POINTS).clip(max=len(fppi) - 1)
    miss_rates = 1 - recall[reached]
    with np.errstate(divide="ignore"):  # a miss rate of 0 makes the geometric mean 0
        mean = np.exp(np.log(miss_rates).mean())
    metrics = {"AP50": ap, "mMR": mean, "recall": recall[-1]}
    return {name: 100 * float(x) for name, x in metrics.items()}, (100 * miss_rates).tolist()


def crowdhuman_report(images: Sequence[CrowdImage]) -> dict[str, Any]:
    """Computes the metrics of a dataset of one class.

    Boxes are clipped to the image. A detection lies on an object if IoU > 0.5, and on an ignore
    region if more than half of its own area is inside.

    Matching is Caltech's (Dollar et al., "Pedestrian Detection", PAMI 2012): in order of score, a
    detection takes the free object of largest IoU that it lies on. A detection that takes none is
    ignored if it lies on an ignore region, and a false positive otherwise. Over the ranking of all
    images' detections:

    * ``AP50``: area under precision over recall by the trapezoidal rule, from the first detection's
      recall on, without interpolation. Its maximum with n objects is 100 (1 - 1/n).
    * ``mMR``: geometric mean of the miss rates, 1 - recall, where the ranking first reaches each of
      ``FPPI_POINTS`` false positives per image, or at its end.
    * ``recall``: share of the objects that are taken.

    ``JI``, the Jaccard index (CrowdDet, arXiv 2003.09163), is the best over score thresholds of the
    mean over the images of k / (n + m - k). The n detections above the threshold are paired one to
    one with the m objects that they lie on, at the largest total IoU; k is the number of pairs.
    Unpaired detections and objects on an ignore region are in neither n nor m; images with
    n = m = 0 do not count.

    Args:
        images: all images of the dataset.

    Returns:
        "results": {"AP50", "mMR", "recall", "JI"} in percent; "miss_rate_by_fppi" and
        "JI_by_score_threshold" in percent; "num_images", "num_objects", "num_ignore_regions".
        Percentages are nan without objects.
    """
    num_ignore = sum(int(image.is_ignore.sum()) for image in images)
    num_objects = sum(len(image.is_ignore) for image in images) - num_ignore
    nan = float("nan")
    metrics = dict.fromkeys(("AP50", "mMR", "recall"), nan)
    miss_rates, jaccard = [nan] * len(FPPI_POINTS), [nan] * len(SCORE_THRESHOLDS)
    if num_objects:
        pairs = _pair_up(images)
        metrics, miss_rates = _curve_metrics(pairs)
        jaccard = [_jaccard_index(pairs, threshold) for threshold in SCORE_THRESHOLDS]
    metrics["JI"] = max((index for index in jaccard if not math.isnan(index)), default=nan)
    by_threshold = zip(SCORE_THRESHOLDS, jaccard, strict=True)
    return {
        "num_images": len(images),
        "num_objects": num_objects,
        "num_ignore_regions": num_ignore,
        "results": metrics,
        "miss_rate_by_fppi": dict(zip(map(str, FPPI_POINTS), miss_rates, strict=True)),
        "JI_by_score_threshold": {f"{threshold:.1f}": index for threshold, index in by_threshold},
    }


def _ground_truth(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (G, 4) of an image as corners, and whether they are ignore regions, (G,)."""
    annotations = record.get("annotations", [])
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    modes = np.array([a["bbox_mode"] for a in annotations], dtype=np.int64)
    for mode in np.unique(modes):  # one call per mode: one per box takes seconds
        rows = modes == mode
        boxes[rows] = BoxMode.convert(boxes[rows], BoxMode(mode), BoxMode.XYXY_ABS)
    return boxes, np.array([a.get("iscrowd", 0) for a in annotations], dtype=bool)


def _crowd_images(
    records: Iterable[dict[str, Any]], predictions: Iterable[tuple[Any, np.ndarray, np.ndarray]]
) -> list[CrowdImage]:
    """Joins ground truth and detections of each image, in the order of the records."""
    by_image = {image_id: detections for image_id, *detections in predictions}
    nothing = (np.zeros((0, 4)), np.zeros(0))
    return [
        CrowdImage(
            *by_image.get(record["image_id"], nothing),
            *_ground_truth(record),
            height=record["height"],
            width=record["width"],
        )
        for record in records
    ]


class CrowdHumanEvaluator(DatasetEvaluator):
    """AP50, mMR, recall and Jaccard index; see :func:`crowdhuman_report`.

    Takes the outputs of any Detectron2 detector on a registered dataset of one class; ``iscrowd``
    marks ignore regions. An image without outputs counts as one without detections. The number of
    detections is not limited.
    """

    def __init__(self, *, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            output_dir: folder for ``crowdhuman.json``; None to write nothing.

        Raises:
            DataError: the dataset has several classes.
        """
        classes = MetadataCatalog.get(dataset_name).get("thing_classes")
        if classes is not None and len(classes) != 1:
            raise DataError(
                f"Dataset '{dataset_name}' has {len(classes)} classes, but CrowdHuman's metrics are"
                " of one; give its metadata the evaluator_type 'coco'."
            )
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._predictions: list[tuple[Any, np.ndarray, np.ndarray]] = []

    def reset(self) -> None:
        """Forgets all outputs."""
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Stores the detections of some images.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "instances".
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            boxes, scores = instances.pred_boxes.tensor, instances.scores
            self._predictions.append(
                (image["image_id"], boxes.float().numpy(), scores.float().numpy())
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Computes the metrics, logs a table, and writes ``crowdhuman.json``.

        Returns:
            {"crowdhuman": {"AP50", "mMR", "recall", "JI"}}; {} in all but the main process.
        """
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return {}
        predictions = itertools.chain(*gathered)
        records = DatasetCatalog.get(self._dataset_name)
        report = crowdhuman_report(_crowd_images(records, predictions))
        results = report["results"]
        table = tabulate([results.values()], results.keys(), tablefmt="pipe", floatfmt=".3f")
        logger.info(
            f"CrowdHuman's metrics on {self._dataset_name} ({report['num_images']} images,"
            f" {report['num_objects']} objects):\n{table}"
        )
        if self._output_dir is not None:
            path = os.path.join(self._output_dir, "crowdhuman.json")
            write_json(path, {"dataset": self._dataset_name, **report})
        return {"crowdhuman": results}
