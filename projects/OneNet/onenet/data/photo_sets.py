"""Small photo datasets in COCO format."""

from __future__ import annotations

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json

from ..utils.errors import DataError
from .coco_json import read_coco_json

__all__ = ["register_all_photos"]

_VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
]  # fmt: skip
_SETS = {  # folder: splits, classes in the order of their ids from 1, evaluator
    "voc2007": (("train", "val", "train_2501", "val_2510"), _VOC_CLASSES, "coco"),
    "kangaroo": (("train", "val"), ["kangaroo"], "coco"),
    "coco_people": (("train", "val"), ["person"], "crowdhuman"),
}


def _load(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    if not os.path.isfile(json_file):
        raise DataError(
            f"dataset '{name}' has no file {json_file}: it wants COCO's format there, and the"
            " images in the folder images beside it; set DETECTRON2_DATASETS to the folder of all"
            " datasets"
        )
    read_coco_json(json_file, image_root)  # checks it
    return load_coco_json(json_file, image_root, name)


def register_all_photos(root: str) -> None:
    """Registers ``voc2007_train``, ``kangaroo_train``, ``coco_people_train`` and so on.

    Args:
        root: folder of all datasets; each has a folder with ``<split>.json`` and ``images/``.
    """
    for folder, (splits, classes, evaluator) in _SETS.items():
        image_root = os.path.join(root, folder, "images")
        for split in splits:
            name, json_file = f"{folder}_{split}", os.path.join(root, folder, f"{split}.json")
            DatasetCatalog.register(name, lambda j=json_file, r=image_root, n=name: _load(j, r, n))
            MetadataCatalog.get(name).set(
                thing_classes=classes,
                evaluator_type=evaluator,
                json_file=json_file,
                image_root=image_root,
            )
