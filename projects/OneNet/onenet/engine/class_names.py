"""Names of the classes that a checkpoint was trained for, and a check of datasets against them."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.coco_json import json_class_names
from ..utils.errors import ConfigError, DataError
from ..utils.files import read_yaml
from ..utils.registry import num_classes_node

__all__ = ["check_class_names", "dataset_class_names", "trained_class_names"]

logger = logging.getLogger(__name__)


def dataset_class_names(names: Sequence[str]) -> list[str] | None:
    """Class names of the first of some datasets that is registered and has some.

    Detectron2's ``register_coco_instances`` gives them only when the set is loaded.
    """
    for name in names:
        if name not in DatasetCatalog:
            continue
        metadata = MetadataCatalog.get(name)
        if metadata.get("thing_classes") is None:
            with contextlib.suppress(OSError, ValueError):  # absent
                DatasetCatalog.get(name)
        if found := metadata.get("thing_classes"):
            return list(found)
    return None


def trained_class_names(cfg: CfgNode, weights: str, stored: list[str] | None) -> list[str] | None:
    """Class names of a checkpoint, in the order of the model's classes.

    Args:
        cfg: of the model.
        weights: path of the checkpoint.
        stored: the names in it.

    Returns:
        ``stored``; for a checkpoint without names, those of the training set in the ``config.yaml``
        beside it; None if these are unknown or of another number.
    """
    if stored is not None:
        return stored
    names, node = _names_of_run(weights), num_classes_node(cfg)
    fits = node is not None and names is not None and len(names) == cfg.MODEL[node].NUM_CLASSES
    return names if fits else None


def _names_of_run(weights: str) -> list[str] | None:
    path = os.path.join(os.path.dirname(weights), "config.yaml")
    if not os.path.isfile(path):
        return None
    try:
        content = read_yaml(path)
        datasets = content.get("DATASETS") if isinstance(content, dict) else None
        if not isinstance(datasets, dict):
            return None
        if json_file := datasets.get("TRAIN_JSON"):
            return json_class_names(str(json_file))
    except (ConfigError, DataError):
        return None
    train = datasets.get("TRAIN")
    return dataset_class_names([str(n) for n in train]) if isinstance(train, list) else None


def check_class_names(cfg: CfgNode, weights: str, names: Sequence[str] | None) -> None:
    """Checks that the test datasets have a checkpoint's classes, in the same order.

    Args:
        cfg: DATASETS.TEST is registered.
        weights: path of the checkpoint, for messages.
        names: of :func:`trained_class_names`; if None, a warning is logged.

    Raises:
        ConfigError: the classes differ.
    """
    for dataset in cfg.DATASETS.TEST:
        found = dataset_class_names([dataset])
        if found is None or names is None:
            without = dataset if found is None else weights
            logger.warning(
                f"{without} does not have the names of its classes: that those of {weights} are"
                f" those of {dataset}, in the same order, is not checked."
            )
        elif list(names) != found:
            raise ConfigError(
                f"The weights {weights} are of the classes {list(names)}, but {dataset} has"
                f" {found}; detections would get wrong names. Give the data the same names in the"
                " same order (of the category ids), or other weights."
            )
