"""Registration of detection datasets in COCO format."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from iopath.common.file_io import get_cache_dir

from ..utils.errors import DataError
from ..utils.files import read_json, write_whole
from .box_checks import is_number
from .coco_checks import check_content, warn_of_content
from .image_names import check_images_exist

__all__ = ["check_same_classes", "json_class_names", "read_coco_json", "register_coco_json"]

logger = logging.getLogger(__name__)


def read_coco_json(json_file: str, image_root: str) -> dict[str, Any]:
    """Reads a json in COCO format, and checks it and that its images exist.

    Args:
        json_file: annotations in COCO format.
        image_root: the folder that the images' ``file_name`` is relative to.

    Raises:
        DataError: the file cannot be used; the message names the file, the entry and the fix.
    """
    content = _read(json_file)
    check_images_exist(json_file, image_root, [image["file_name"] for image in content["images"]])
    return content


def _read(json_file: str) -> dict[str, Any]:
    if not os.path.isfile(json_file):
        raise DataError(f"there is no annotation file {json_file}: check the path in the config")
    content = read_json(json_file)
    check_content(json_file, content)
    warn_of_content(json_file, content)
    return content


def _class_names(content: dict[str, Any]) -> dict[int, str]:
    """Names by id, in the order of load_coco_json's classes."""
    return {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}


def _completed(json_file: str, content: dict[str, Any]) -> str:
    """Path of the file for Detectron2 and COCOeval: the original, or a completed copy.

    COCOeval needs area and iscrowd, and takes the annotation id 0 for "no match". Detectron2 drops
    boxes with an empty polygon, which labelling tools write, and fails on broken segmentations and
    keypoints; none of them is needed for boxes.
    """
    annotations = content["annotations"]
    mended = []
    for annotation in annotations:
        kept = {k: v for k, v in annotation.items() if k not in ("segmentation", "keypoints")}
        if not is_number(kept.get("area")):
            kept["area"] = kept["bbox"][2] * kept["bbox"][3]
        if kept.get("iscrowd") not in (0, 1):
            kept["iscrowd"] = 0
        mended.append(kept)
    if any(annotation["id"] < 1 for annotation in annotations):
        mended = [{**annotation, "id": i} for i, annotation in enumerate(mended, start=1)]
    if mended == annotations:
        return json_file
    text = json.dumps({**content, "annotations": mended}).encode()
    # Named by its content, so a copy is never outdated and all workers use the same
    copy = os.path.join(get_cache_dir(), f"onenet_{hashlib.sha256(text).hexdigest()[:16]}.json")
    logger.info(
        f"{json_file} has polygons or keypoints, lacks area or iscrowd, or has an annotation id of"
        f" 0: its completed copy {copy} is used"
    )
    own = f"{copy}.{os.getpid()}"  # all workers may write at the same time
    try:
        write_whole(own, text)
        os.replace(own, copy)
    except OSError as error:
        raise DataError(
            f"{copy}, the completed copy of {json_file}, cannot be written ({error.strerror}); make"
            " room, or name another folder in the environment variable FVCORE_CACHE."
        ) from error
    return copy


def register_coco_json(json_file: str, image_root: str) -> str:
    """Checks a detection dataset in COCO format and registers it with Detectron2.

    Registering a dataset again reads its file again.

    Args:
        json_file: annotations in COCO format.
        image_root: the folder that the images' ``file_name`` is relative to.

    Returns:
        The name of the dataset, ``<json_file> (<image_root>)``.

    Raises:
        DataError: see :func:`read_coco_json`.
    """
    content = read_coco_json(json_file, image_root)
    # One file may be used with several folders, such as original and blurred images
    name = f"{os.path.normpath(json_file)} ({os.path.normpath(image_root)})"
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    completed = _completed(json_file, content)
    DatasetCatalog.register(name, lambda: load_coco_json(completed, image_root, name))
    names = _class_names(content)
    # load_coco_json sets them only when the dataset is loaded
    MetadataCatalog.get(name).set(
        thing_classes=list(names.values()),
        thing_dataset_id_to_contiguous_id={category_id: i for i, category_id in enumerate(names)},
        evaluator_type="coco",
        json_file=completed,
        image_root=image_root,
    )
    return name


def json_class_names(json_file: str) -> list[str]:
    """Class names of a dataset in COCO format, in the order of the classes (of the ids).

    Raises:
        DataError: the file cannot be used.
    """
    return list(_class_names(_read(json_file)).values())


def check_same_classes(train_name: str, test_name: str) -> None:
    """Checks that two registered datasets have the same classes in the same order.

    Args:
        train_name: name of the dataset for training.
        test_name: name of the dataset for testing.

    Raises:
        DataError: names or order differ.
    """
    train, test = (MetadataCatalog.get(name).thing_classes for name in (train_name, test_name))
    if train != test:
        raise DataError(
            f"{train_name} and {test_name} differ in their classes ({train} and {test}): the"
            " 'categories' for training and for testing must be the same"
        )
