"""Evaluator of how much a detector still needs NMS."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..modeling.postprocess import finite_only
from ..utils.errors import DataError
from ..utils.files import write_json
from .measure import measure, report_table
from .scenes import Scenes
from .thresholds import FILE_NAME, read_thresholds

__all__ = ["EndToEndEvaluator", "record_weights"]

logger = logging.getLogger(__name__)


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
    :func:`onenet.evaluation.measure.crowding_bins`. The metric of a bin, such as
    ``duplicates@0.3-over_0.5``, counts claims and duplicates of its objects only (N stays). Its AP
    leaves out the objects of other bins, and the detections whose most overlapped object of their
    class, if IoU >= ``iou_thresh``, is in another bin. NMS is applied before that selection.

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
            # In float32, as in COCOEvaluator's file of results
            boxes = BoxMode.convert(
                instances.pred_boxes.tensor.float(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
            )
            scores = instances.scores.float()
            self._predictions.append(
                (image["image_id"], boxes.numpy(), scores.numpy(), instances.pred_classes.numpy())
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
        if not scenes.num_images:
            raise DataError(f"Dataset '{self._dataset_name}' has no images to evaluate on.")
        class_names = MetadataCatalog.get(self._dataset_name).get("thing_classes")
        report, thresholds = measure(
            scenes,
            self._dataset_name,
            class_names if self._calibrates else None,
            nms_thresh=self._nms_thresh,
            iou_thresh=self._iou_thresh,
            max_dets_per_image=self._max_dets_per_image,
        )
        logger.info(
            f"End-to-end-ness on {self._dataset_name} ({report['num_images']} images), NMS at IoU"
            f" {self._nms_thresh}; by the objects' largest IoU with another of their class:\n"
            f"{report_table(report)}"
        )
        if self._output_dir is not None:
            write_json(os.path.join(self._output_dir, "end_to_end.json"), report)
            if thresholds is not None:
                write_json(os.path.join(self._output_dir, FILE_NAME), thresholds)
        return {"end_to_end": report["results"]}


def _scenes(dataset_dicts: Iterable[dict], predictions: Iterable[tuple]) -> Scenes:
    """Joins ground truth and detections of all images, in the order of the ids."""
    by_image = {image_id: detections for image_id, *detections in predictions}
    records = sorted(dataset_dicts, key=lambda record: record["image_id"])
    annotations = [record.get("annotations", []) for record in records]
    gt_boxes = [
        BoxMode.convert(np.array([a["bbox"]], float), a["bbox_mode"], BoxMode.XYWH_ABS)[0]
        for a in itertools.chain(*annotations)
    ]
    found = [
        (index, *by_image[record["image_id"]])
        for index, record in enumerate(records)
        if record["image_id"] in by_image
    ]
    nothing = (0, np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    images, boxes, scores, classes = zip(nothing, *found, strict=True)
    return Scenes(
        len(records),
        np.repeat(images, [len(values) for values in scores]),
        np.concatenate(boxes, dtype=float),
        np.concatenate(scores, dtype=float),
        np.concatenate(classes).astype(np.int64),
        np.repeat(np.arange(len(records)), [len(entries) for entries in annotations]),
        np.array(gt_boxes, dtype=float).reshape(-1, 4),
        np.array([a["category_id"] for a in itertools.chain(*annotations)], dtype=np.int64),
        np.array([a.get("iscrowd", 0) for a in itertools.chain(*annotations)], dtype=bool),
    )


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
