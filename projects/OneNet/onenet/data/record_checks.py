"""Checks of loaded datasets, in Detectron2's standard format."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n

from ..utils.errors import DataError
from ..utils.registry import num_classes_node

__all__ = ["check_classes", "has_objects", "warn_of_many_objects"]


def has_objects(records: Iterable[dict[str, Any]]) -> bool:
    """Whether an image has an object that is no crowd region."""
    return any(_num_objects(record) for record in records)


def _num_objects(record: dict[str, Any]) -> int:
    return sum(not annotation.get("iscrowd", 0) for annotation in record.get("annotations", ()))


def check_classes(records: Iterable[dict[str, Any]], cfg: CfgNode) -> None:
    """Checks the classes: an index out of range would address another sample's logit.

    Raises:
        DataError: an object's class is not below NUM_CLASSES.
    """
    node = num_classes_node(cfg)
    if node is None or not cfg.MODEL[node].NUM_CLASSES:
        return
    count = cfg.MODEL[node].NUM_CLASSES
    for record in records:
        for annotation in record.get("annotations", ()):
            if not 0 <= annotation["category_id"] < count:
                raise DataError(
                    f"{record['file_name']} has an object of class {annotation['category_id']};"
                    f" MODEL.{node}.NUM_CLASSES is {count}, so classes are 0 to {count - 1}. Mend"
                    " 'category_id' of the dataset's records, or the key."
                )


def warn_of_many_objects(
    records: Sequence[dict[str, Any]], cfg: CfgNode, names: Sequence[str]
) -> None:
    """Warns, once in a process, if an image has more objects than can be found.

    Args:
        records: of the datasets.
        cfg: the config.
        names: of the datasets.
    """
    record = max(records, key=_num_objects)
    count = _num_objects(record)
    limits = {"TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE}
    if cfg.MODEL.META_ARCHITECTURE == "OneNet" and cfg.MODEL.ONENET.RESCORING.CANDIDATES:
        limits["MODEL.ONENET.RESCORING.CANDIDATES"] = cfg.MODEL.ONENET.RESCORING.CANDIDATES
    too_low = [f"{key} (now {limit})" for key, limit in limits.items() if count > limit]
    if too_low:
        log_first_n(
            logging.WARNING,
            f"{record['file_name']} of {', '.join(names)} has {count} objects, more than can be"
            f" found: raise {' and '.join(too_low)} to {count} or more.",
            name=__name__,
            key="message",
        )
