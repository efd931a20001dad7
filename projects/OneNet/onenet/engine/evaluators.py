"""The evaluators of a dataset, and limits for their results."""

from __future__ import annotations

import os
import re

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from ..evaluation import CrowdHumanEvaluator, EndToEndEvaluator
from ..utils.errors import ConfigError, DataError, LimitError

__all__ = [
    "NMS_OFF",
    "build_evaluator",
    "by_dataset",
    "check_evaluator",
    "check_limits",
    "results_folder",
]

NMS_OFF = os.path.join("inference", "nms_off")
"""Below OUTPUT_DIR, what a detector that carries NMS finds without it."""


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: str = "inference") -> DatasetEvaluator:
    """The evaluators for a dataset, by its metadata's ``evaluator_type``.

    Args:
        cfg: TEST.END_TO_END.ENABLED puts an :class:`onenet.evaluation.EndToEndEvaluator` beside
            COCOEvaluator. The type "crowdhuman" adds a
            :class:`onenet.evaluation.CrowdHumanEvaluator`.
        dataset_name: a registered dataset.
        folder: below OUTPUT_DIR, for what they write; with several datasets each has its own
            folder in there.

    Raises:
        DataError: there is none for that type, or none for its number of classes.
    """
    check_evaluator(dataset_name)
    output_dir = results_folder(cfg, dataset_name, folder)
    # COCO's own limit is 100; crowds need more.
    max_dets = max(cfg.TEST.DETECTIONS_PER_IMAGE, 100)
    evaluators: list[DatasetEvaluator] = [
        COCOEvaluator(
            dataset_name, tasks=("bbox",), output_dir=output_dir, max_dets_per_image=max_dets
        )
    ]
    if MetadataCatalog.get(dataset_name).evaluator_type == "crowdhuman":
        evaluators.append(CrowdHumanEvaluator(dataset_name=dataset_name, output_dir=output_dir))
    end_to_end = cfg.TEST.END_TO_END
    if end_to_end.ENABLED:
        evaluators.append(
            EndToEndEvaluator(
                dataset_name=dataset_name,
                output_dir=output_dir,
                nms_thresh=end_to_end.NMS_THRESH,
                iou_thresh=end_to_end.IOU_THRESH,
                max_dets_per_image=max_dets,
                calibrates=folder != NMS_OFF,  # thresholds are for the detector as configured
            )
        )
    return DatasetEvaluators(evaluators)


def check_limits(cfg: CfgNode, results: dict) -> None:
    """Checks the results against TEST.LIMITS, in the main process, which alone has them.

    Args:
        cfg: from :func:`setup` or :func:`onenet.engine.load_config`.
        results: what ``Trainer.test`` returned.

    Raises:
        ConfigError: a limit's task or metric is not among the results.
        LimitError: a metric is beyond its limit, or nan; with one sentence for each.
    """
    if not comm.is_main_process():
        return
    broken = []
    for dataset_name, tasks in by_dataset(cfg, results).items():
        for task, metric, direction, limit in cfg.TEST.LIMITS:
            known, what = (tasks[task], "metric") if task in tasks else (tasks, "task")
            if metric not in tasks.get(task, {}):
                raise ConfigError(
                    f"TEST.LIMITS names '{task}/{metric}', but the results on '{dataset_name}' have"
                    f" no such {what}; there is {', '.join(known)}."
                )
            value = tasks[task][metric]
            keeps = value <= limit if direction == "max" else value >= limit  # never for nan
            if not keeps:
                broken.append(
                    f"TEST.LIMITS: {task}/{metric} on '{dataset_name}' is {value:.4f}; the"
                    f" {direction}imum allowed is {limit}."
                )
    if broken:
        raise LimitError("\n".join(broken))


def results_folder(cfg: CfgNode, dataset_name: str, folder: str = "inference") -> str:
    """Where the evaluators of a dataset write; see :func:`build_evaluator`."""
    output_dir = os.path.join(cfg.OUTPUT_DIR, folder)
    if len(set(cfg.DATASETS.TEST)) > 1:
        # A json set's name is its path.
        output_dir = os.path.join(output_dir, re.sub(r"[^\w.-]+", "_", dataset_name).strip("_"))
    return output_dir


def by_dataset(cfg: CfgNode, results: dict) -> dict[str, dict]:
    """What ``Trainer.test`` returned, by dataset; for a single one it leaves that level out."""
    names = list(dict.fromkeys(cfg.DATASETS.TEST))
    return {names[0]: results} if len(names) == 1 else results


def check_evaluator(dataset_name: str) -> None:
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in ("coco", "crowdhuman"):
        raise DataError(
            f"Dataset '{dataset_name}' has evaluator_type '{evaluator_type}', for which there is no"
            " evaluator; 'coco' suits any dataset of boxes, 'crowdhuman' one of a single class."
        )
    if evaluator_type == "crowdhuman":
        CrowdHumanEvaluator(dataset_name=dataset_name)  # it checks the number of classes
