"""Evaluator of how much a detector still needs NMS."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from tabulate import tabulate

from ..modeling.postprocess import finite_only
from ..utils.errors import DataError
from ..utils.files import write_json
from .ap import Scene, mean_ap, nms_survivors, precision_table
from .matching import Status, class_overlaps, crowding, match_detections
from .thresholds import FILE_NAME, calibrate, read_thresholds

__all__ = ["CROWDING_BINS", "EndToEndEvaluator", "record_weights"]

logger = logging.getLogger(__name__)

THRESHOLDS = [round(0.05 * i, 2) for i in range(1, 20)]  # of the curves
MAIN_THRESHOLDS = (0.1, 0.3, 0.5)  # of the table
CROWDING_BINS = ("none", "under_0.3", "0.3_to_0.5", "over_0.5")


def crowding_bins(overlaps: np.ndarray) -> np.ndarray:
    """The bin of each object, as an index into ``CROWDING_BINS``.

    Args:
        overlaps: (G,) from :func:`onenet.evaluation.matching.crowding`: 0 is "none", 0 < x < 0.3
            "under_0.3", 0.3 <= x <= 0.5 "0.3_to_0.5", and x > 0.5 "over_0.5".

    Returns:
        (G,) int64.
    """
    return np.select([overlaps == 0, overlaps < 0.3, overlaps <= 0.5], [0, 1, 2], 3)


class EndToEndEvaluator(DatasetEvaluator):
    """Measures how much a detector still needs NMS.

    Takes the outputs of any Detectron2 detector on a dataset with box annotations, beside
    COCOEvaluator in the same pass. Crowd regions are not objects; AP treats them as COCO does. An
    image without outputs counts as one without detections.

    Claims and duplicates are those of :func:`onenet.evaluation.matching.match_detections`. With N
    the number of images of the dataset:

    * ``duplicates@t``: number of duplicates with score >= t, divided by N.
    * ``recall``: share of the objects that are claimed, at any score, in percent.
    * ``score_gap``: mean over the claimed objects of s - s', where s is the score of the claiming
      detection and s' the highest score of its duplicates, or 0 (OneNet's paper, arXiv 2012.05780).
      nan if no object is claimed.
    * ``AP``, ``AP50``: COCO's, in points (0 to 100). ``AP_after_NMS``, ``AP50_after_NMS``: after
      class-wise NMS at ``nms_thresh``. ``NMS_gap`` = ``AP_after_NMS`` - ``AP``, and ``NMS_gap50``
      likewise. nan without detections, as in COCOEvaluator.

    Without objects all metrics are nan.

    Crowding is an object's largest IoU with another object of its class, in the bins of
    :func:`crowding_bins`. The metric of a bin, such as ``duplicates@0.3-over_0.5``, counts claims
    and duplicates of its objects only (N stays). Its AP leaves out the objects of other bins, and
    the detections whose most overlapped object of their class, if IoU >= ``iou_thresh``, is in
    another bin. NMS is applied before that selection.

    If the metadata has class names, ``thresholds.json`` gets the score threshold of best F1 of
    every class (:mod:`onenet.evaluation.thresholds`); :func:`record_weights` adds the digest of the
    weights.
    """

    def __init__(
        self,
        *,
        dataset_name: str,
        output_dir: str | None = None,
        nms_thresh: float = 0.6,
        iou_thresh: float = 0.5,
        max_dets_per_image: int = 100,
        calibrates: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            output_dir: folder for ``end_to_end.json`` and ``thresholds.json``; None to write
                nothing.
            nms_thresh: IoU threshold of NMS.
            iou_thresh: least IoU at which a detection lies on an object.
            max_dets_per_image: COCOeval's limit per class and image.
            calibrates: whether to write ``thresholds.json``.
        """
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._nms_thresh = nms_thresh
        self._iou_thresh = iou_thresh
        self._max_dets_per_image = max_dets_per_image
        self._calibrates = calibrates
        self._predictions: list[tuple[Any, np.ndarray, np.ndarray, np.ndarray]] = []

    def reset(self) -> None:
        """Forgets all outputs."""
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Stores the detections of some images, without those whose score or box is NaN or inf.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "instances".
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = finite_only(output["instances"].to("cpu"))
            self._predictions.append(
                (
                    image["image_id"],
                    instances.pred_boxes.tensor.float().numpy(),
                    instances.scores.float().numpy(),
                    instances.pred_classes.numpy(),
                )
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Computes metrics, logs a table, and writes ``end_to_end.json`` and ``thresholds.json``.

        Returns:
            {"end_to_end": metric -> value}, with "<metric>-<bin>" for the metrics of a bin; {} in
            all but the main process.

        Raises:
            DataError: the dataset has no images.
        """
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return {}
        predictions = itertools.chain(*gathered)
        logger.info(f"Measuring end-to-end-ness on {self._dataset_name} ...")
        scenes = _scenes(DatasetCatalog.get(self._dataset_name), predictions)
        if not scenes:
            raise DataError(f"Dataset '{self._dataset_name}' has no images to evaluate on.")
        report = self._measure(scenes)
        self._log(report)
        if self._output_dir is not None:
            write_json(os.path.join(self._output_dir, "end_to_end.json"), report)
            self._write_thresholds(scenes, self._output_dir)
        return {"end_to_end": report["results"]}

    def _write_thresholds(self, scenes: Sequence[Scene], folder: str) -> None:
        class_names = MetadataCatalog.get(self._dataset_name).get("thing_classes")
        if not self._calibrates or class_names is None:
            return
        content = {
            "dataset": self._dataset_name,
            "iou_thresh": self._iou_thresh,
            "weights": None,
            "classes": calibrate(scenes, class_names, self._iou_thresh),
        }
        write_json(os.path.join(folder, FILE_NAME), content)

    def _measure(self, scenes: Sequence[Scene]) -> dict:
        """The content of ``end_to_end.json``; nan becomes null there."""
        tally = _tally(scenes, self._iou_thresh)
        survivors = [nms_survivors(scene, self._nms_thresh) for scene in scenes]
        # Without detections AP is nan, as in COCOEvaluator
        detects = any(len(scene.scores) for scene in scenes)

        def precision_both_ways(
            part: Sequence[Scene], keep: Sequence[np.ndarray]
        ) -> tuple[np.ndarray, np.ndarray]:
            table = np.zeros((10, 101, 0))
            if detects:
                table = precision_table(part, self._max_dets_per_image)
            if all(k.all() for k in keep):  # NMS removes nothing
                return table, table
            after = [scene.with_detections(k) for scene, k in zip(part, keep, strict=True)]
            return table, precision_table(after, self._max_dets_per_image)

        before, after = precision_both_ways(scenes, survivors)
        results = {
            **_ap_metrics(before, after),
            **_ap_metrics(before[0], after[0], "50"),
            **tally.metrics(len(scenes)),
        }
        bins = []
        for index, name in enumerate(CROWDING_BINS):
            part, keep = [], []
            for scene, survives in zip(scenes, survivors, strict=True):
                belongs, lies_here = _bin_masks(scene, index, self._iou_thresh)
                part.append(scene.with_detections(lies_here).with_ground_truth(belongs))
                keep.append(survives[lies_here])
            metrics = {
                **_ap_metrics(*precision_both_ways(part, keep)),
                **tally.metrics(len(scenes), index),
            }
            results.update({f"{metric}-{name}": value for metric, value in metrics.items()})
            num_objects = int((tally.object_bins == index).sum())
            bins.append({"name": name, "num_objects": num_objects, **metrics})
        return {
            "dataset": self._dataset_name,
            "num_images": len(scenes),
            "num_objects": len(tally.object_bins),
            "annotations": _digest(scenes),
            "nms_thresh": self._nms_thresh,
            "iou_thresh": self._iou_thresh,
            "results": results,
            "curves": {
                "score": THRESHOLDS,
                "duplicates_per_image": _per_image(tally.duplicate_scores, len(scenes)),
                "claims_per_image": _per_image(tally.claim_scores, len(scenes)),
                "recall": [i / 100 for i in range(101)],
                "precision": _mean_over_classes(before[0]),
                "precision_after_nms": _mean_over_classes(after[0]),
            },
            "crowding": bins,
        }

    def _log(self, report: dict) -> None:
        rows = [{"name": "all", "num_objects": report["num_objects"], **report["results"]}]
        metrics = list(report["crowding"][0])
        table = tabulate(
            [[row[metric] for metric in metrics] for row in rows + report["crowding"]],
            headers=["crowding", "objects", *metrics[2:]],
            tablefmt="pipe",
            floatfmt=".3f",
        )
        logger.info(
            f"End-to-end-ness on {self._dataset_name} ({report['num_images']} images), NMS at IoU"
            f" {self._nms_thresh}; by the objects' largest IoU with another of their class:\n"
            f"{table}"
        )


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


def _tally(scenes: Iterable[Scene], iou_thresh: float) -> _Tally:
    parts = []
    for scene in scenes:
        gt_boxes, gt_classes = scene.objects()
        status, objects = match_detections(
            scene.boxes, scene.scores, scene.classes, gt_boxes, gt_classes, iou_thresh
        )
        bins = crowding_bins(crowding(gt_boxes, gt_classes))
        claim, duplicate = status == Status.CLAIM, status == Status.DUPLICATE
        best_duplicate = np.zeros(len(gt_boxes))
        np.maximum.at(best_duplicate, objects[duplicate], scene.scores[duplicate])
        parts.append(
            {
                "object_bins": bins,
                "claim_scores": scene.scores[claim],
                "claim_bins": bins[objects[claim]],
                "score_gaps": scene.scores[claim] - best_duplicate[objects[claim]],
                "duplicate_scores": scene.scores[duplicate],
                "duplicate_bins": bins[objects[duplicate]],
            }
        )
    return _Tally(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _bin_masks(scene: Scene, index: int, iou_thresh: float) -> tuple[np.ndarray, np.ndarray]:
    """Bool masks of the ground truth (G,) and detections (D,) of a crowding bin."""
    gt_boxes, gt_classes = scene.objects()
    inside = crowding_bins(crowding(gt_boxes, gt_classes)) == index
    ious = class_overlaps(scene.boxes, scene.classes, gt_boxes, gt_classes)
    here = ious[:, inside].max(axis=1, initial=0.0)
    there = ious[:, ~inside].max(axis=1, initial=0.0)
    belongs = scene.is_crowd.copy()
    belongs[~scene.is_crowd] = inside
    return belongs, (there < iou_thresh) | (here >= there)


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


def _scenes(dataset_dicts: Iterable[dict], predictions: Iterable[tuple]) -> list[Scene]:
    """Joins ground truth and detections of each image, in the order of the ids."""
    by_image = {image_id: detections for image_id, *detections in predictions}
    nothing = (
        np.zeros((0, 4), dtype=np.float32),
        np.zeros(0, dtype=np.float32),
        np.zeros(0, dtype=np.int64),
    )
    scenes = []
    for record in sorted(dataset_dicts, key=lambda record: record["image_id"]):
        annotations = record.get("annotations", [])
        boxes = [
            BoxMode.convert(np.array([a["bbox"]], float), a["bbox_mode"], BoxMode.XYWH_ABS)
            for a in annotations
        ]
        scenes.append(
            Scene(
                *by_image.get(record["image_id"], nothing),
                gt_boxes=np.array(boxes, dtype=float).reshape(-1, 4),
                gt_classes=np.array([a["category_id"] for a in annotations], dtype=np.int64),
                is_crowd=np.array([a.get("iscrowd", 0) for a in annotations], dtype=bool),
            )
        )
    return scenes


def _digest(scenes: Sequence[Scene]) -> str:
    """Hash of the ground truth, as the annotations of a dataset's name may change."""
    digest = hashlib.sha256()
    for scene in scenes:
        for values in (scene.gt_boxes, scene.gt_classes, scene.is_crowd):
            digest.update(f"{len(values)} ".encode() + values.tobytes())
    return digest.hexdigest()[:16]


def record_weights(folder: str, digest: str) -> None:
    """Adds the digest of the weights to a ``thresholds.json``; evaluators do not see the model.

    Args:
        folder: the evaluator's ``output_dir``; the file may be missing.
        digest: of the evaluated model, see :func:`onenet.evaluation.thresholds.weights_digest`.

    Raises:
        DataError: the file is damaged.
    """
    path = os.path.join(folder, FILE_NAME)
    if not os.path.isfile(path):
        return
    content = read_thresholds(path)
    if content.get("weights") is None:  # otherwise it is from an earlier evaluation
        write_json(path, {**content, "weights": digest})
