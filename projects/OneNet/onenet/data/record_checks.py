"""Checks of loaded datasets, in Detectron2's standard format."""

from __future__ import annotations

import logging
import math
import os
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from ..utils.errors import DataError
from ..utils.registry import num_classes_node

__all__ = ["check_annotations", "has_objects", "warn_of_records", "warn_of_training_set"]

_MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


def has_objects(records: Iterable[dict[str, Any]]) -> bool:
    """Whether an image has an object that is no crowd region."""
    return any(_num_objects(record) for record in records)


def _num_objects(record: dict[str, Any]) -> int:
    return sum(not annotation.get("iscrowd", 0) for annotation in record.get("annotations") or ())


def check_annotations(records: Iterable[dict[str, Any]], cfg: CfgNode) -> None:
    """Checks boxes and classes of datasets that a program may have registered.

    A class out of range would address another sample's logit.

    Raises:
        DataError: an image has no file name; or an object has no box of four finite numbers, no
            mode of it, or no class below NUM_CLASSES.
    """
    node = num_classes_node(cfg)
    count = cfg.MODEL[node].NUM_CLASSES if node is not None else 0
    for record in records:
        if not isinstance(record.get("file_name"), str):
            raise DataError(f"A record has no 'file_name': {reprlib.repr(record)}; add it.")
        for annotation in record.get("annotations") or ():
            name = f"{record['file_name']} has an object"
            box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
            if mode not in _MODES or not _is_box(box):
                raise DataError(
                    f"{name} with 'bbox' {box!r} and 'bbox_mode' {mode!r}: give four finite numbers"
                    " in pixels, and BoxMode.XYXY_ABS or XYWH_ABS."
                )
            category = annotation.get("category_id")
            is_index = isinstance(category, (int, np.integer))
            if not is_index or (count and not 0 <= category < count):
                raise DataError(
                    f"{name} of class {category!r};"
                    f" MODEL.{node}.NUM_CLASSES is {count}, so classes are 0 to {count - 1}. Mend"
                    " 'category_id' of the dataset's records, or the key."
                )


def warn_of_records(records: Sequence[dict[str, Any]], cfg: CfgNode, names: Sequence[str]) -> None:
    """Warns, once in a process, of images with too many objects, and of objects given twice.

    Args:
        records: of the datasets.
        cfg: the config.
        names: of the datasets.
    """
    told = ", ".join(names)
    record = max(records, key=_num_objects)
    count = _num_objects(record)
    limits = {"TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE}
    if cfg.MODEL.META_ARCHITECTURE == "OneNet" and cfg.MODEL.ONENET.RESCORING.CANDIDATES:
        limits["MODEL.ONENET.RESCORING.CANDIDATES"] = cfg.MODEL.ONENET.RESCORING.CANDIDATES
    too_low = [f"{key} (now {limit})" for key, limit in limits.items() if count > limit]
    if too_low:
        _warn(
            f"{record['file_name']} of {told} has {count} objects, more than can be found: raise"
            f" {' and '.join(too_low)} to {count} or more."
        )
    repeats = {r["file_name"]: _num_repeats(r) for r in records}
    total = sum(repeats.values())
    if total:
        first = next(name for name, number in repeats.items() if number)
        _warn(
            f"{total} objects of {told} have the same box and class as another of their image, the"
            f" first in {first}: a detector without duplicates misses them; leave them out."
        )


def warn_of_training_set(records: Iterable[dict[str, Any]], cfg: CfgNode) -> None:
    """Warns of classes without an object, and of test images that are trained on.

    Args:
        records: of DATASETS.TRAIN.
        cfg: the config; DATASETS.TEST is loaded.
    """
    used = {a["category_id"] for r in records for a in r.get("annotations") or ()}
    for dataset in cfg.DATASETS.TRAIN[:1]:  # all have the same classes
        class_names = MetadataCatalog.get(dataset).get("thing_classes") or []
        if unused := [name for i, name in enumerate(class_names) if i not in used]:
            _warn(
                f"{', '.join(cfg.DATASETS.TRAIN)} has no object of {len(unused)} of its classes"
                f" ({', '.join(unused[:10])}): they cannot be learnt; remove categories that are"
                " none, as a labelling tool's group of all classes."
            )
    trained_on = {os.path.abspath(record["file_name"]) for record in records}
    for dataset in cfg.DATASETS.TEST:
        images = [os.path.abspath(record["file_name"]) for record in DatasetCatalog.get(dataset)]
        if shared := sum(image in trained_on for image in images):
            _warn(
                f"{shared} of the {len(images)} images of {dataset} are trained on, too: its"
                " results will not tell how well other images do."
            )


def _is_box(box: Any) -> bool:
    is_sequence = isinstance(box, (list, tuple, np.ndarray))
    return is_sequence and len(box) == 4 and all(map(math.isfinite, box))


def _num_repeats(record: dict[str, Any]) -> int:
    """Number of objects with the box and class of an earlier one."""
    objects = [
        (annotation["category_id"], *annotation["bbox"])
        for annotation in record.get("annotations") or ()
        if not annotation.get("iscrowd", 0)
    ]
    return len(objects) - len(set(objects))


def _warn(sentence: str) -> None:
    log_first_n(logging.WARNING, sentence, name=__name__, key="message")
