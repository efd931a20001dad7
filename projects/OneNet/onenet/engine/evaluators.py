"""Evaluators of a dataset, and limits of their results."""

from __future__ import annotations

import os
import re

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from ..evaluation import CrowdHumanEvaluator, EndToEndEvaluator, UncachedCOCOEvaluator
from ..utils.errors import ConfigError, DataError, LimitError
from ..utils.files import read_json, write_json

__all__ = [
    "NMS_OFF",
    "build_evaluator",
    "by_dataset",
    "check_evaluator",
    "check_limits",
    "dataset_identity",
    "note_dataset",
    "noted_dataset",
    "results_folder",
]

NMS_OFF = os.path.join("inference", "nms_off")
"""Folder below OUTPUT_DIR for the evaluation of a detector with its NMS off."""

_NOTE = "dataset.json"


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: str = "inference") -> DatasetEvaluator:
    """Builds the evaluators of a dataset, by its metadata's ``evaluator_type``.

    These are :class:`onenet.evaluation.UncachedCOCOEvaluator`, with TEST.END_TO_END.ENABLED
    :class:`onenet.evaluation.EndToEndEvaluator`, and for the type "crowdhuman"
    :class:`onenet.evaluation.CrowdHumanEvaluator`.

    Args:
        cfg: the config.
        dataset_name: a registered dataset.
        folder: output folder below OUTPUT_DIR; with several datasets each has a subfolder.

    Raises:
        DataError: the type is unknown, or does not suit the number of classes.
    """
    check_evaluator(dataset_name)
    output_dir = results_folder(cfg, dataset_name, folder)
    # At least COCO's limit of 100
    max_dets = max(cfg.TEST.DETECTIONS_PER_IMAGE, 100)
    evaluators: list[DatasetEvaluator] = [
        UncachedCOCOEvaluator(
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
    """Checks the results against TEST.LIMITS, in the main process only.

    Args:
        cfg: from :func:`setup` or :func:`onenet.engine.load_config`.
        results: from ``Trainer.test``.

    Raises:
        ConfigError: a limit's task or metric is not in the results.
        LimitError: a metric exceeds its limit or is nan; has one line for each.
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
    """Output folder of a dataset's evaluators; see :func:`build_evaluator`."""
    output_dir = os.path.join(cfg.OUTPUT_DIR, folder)
    if len(set(cfg.DATASETS.TEST)) > 1:
        # The name of a COCO json has two paths
        output_dir = os.path.join(output_dir, re.sub(r"[^\w.-]+", "_", dataset_name).strip("_"))
    return output_dir


def dataset_identity(cfg: CfgNode, dataset_name: str) -> str:
    """What tells a test dataset from others: its name, with the real paths of its files."""
    folder, json_file = cfg.DATASETS.FOLDER, cfg.DATASETS.TEST_JSON
    if json_file:
        return " ".join(map(os.path.realpath, (json_file, cfg.DATASETS.TEST_IMAGE_ROOT)))
    if folder:
        return os.path.realpath(folder) + dataset_name.removeprefix(os.path.normpath(folder))
    return dataset_name


def note_dataset(cfg: CfgNode, dataset_name: str) -> None:
    """Notes in a dataset's results folder what they are of."""
    path = os.path.join(results_folder(cfg, dataset_name), _NOTE)
    write_json(path, {"dataset": dataset_identity(cfg, dataset_name)})


def noted_dataset(cfg: CfgNode, dataset_name: str) -> str | None:
    """The note of :func:`note_dataset` in the folder that this dataset's results will have."""
    path = os.path.join(results_folder(cfg, dataset_name), _NOTE)
    try:
        content = read_json(path, 2**20)
    except DataError:  # none, or a damaged one
        return None
    return content.get("dataset") if isinstance(content, dict) else None


def by_dataset(cfg: CfgNode, results: dict) -> dict[str, dict]:
    """Results of ``Trainer.test`` by dataset; it omits that level for a single one."""
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
