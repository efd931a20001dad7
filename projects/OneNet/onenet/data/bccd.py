"""The blood cell dataset BCCD, as boxes in Pascal VOC format."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..utils.errors import DataError
from .formats.records import class_number, clipped
from .formats.voc import read_xml
from .image_names import check_images_exist

__all__ = ["load_voc_boxes", "register_all_bccd"]

logger = logging.getLogger(__name__)

_CLASS_NAMES = ["RBC", "WBC", "Platelets"]
_SPLITS = ("train", "val", "test")
_FOLDERS = ("Annotations", "ImageSets/Main", "JPEGImages")


def _load_image(
    xml_file: str, class_names: Sequence[str]
) -> tuple[int, int, list[dict[str, Any]], int]:
    """Reads an xml file: height, width, annotations, and the number of dropped boxes."""
    (width, height), objects = read_xml(xml_file)
    annotations = []
    for voc in objects:
        class_id = class_number(voc.name, class_names, xml_file)
        if corners := clipped(voc.box, (width, height)):
            annotations.append(
                {
                    "bbox": list(corners),
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": class_id,
                }
            )
    return height, width, annotations, len(objects) - len(annotations)


def load_voc_boxes(dirname: str, split: str, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Loads a detection dataset in Pascal VOC format.

    Unlike Detectron2's ``load_voc_instances``, this drops boxes without area, which VOC's offset of
    one pixel would turn into 1 x 1 boxes, and clips boxes to the image.

    Args:
        dirname: folder with ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: name of a list in ``ImageSets/Main``, without ``.txt``.
        class_names: the classes in the order of their ids.

    Returns:
        One dict per image in Detectron2's standard format; boxes are XYXY_ABS, in pixels.

    Raises:
        DataError: a file is missing or broken, or has an unknown class.
    """
    split_file = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
    if not os.path.isfile(split_file):
        raise DataError(f"there is no list of images {split_file}: check folder and split")
    names = Path(split_file).read_text(encoding="utf-8").split()
    image_dir = os.path.join(dirname, "JPEGImages")
    check_images_exist(split_file, image_dir, [f"{name}.jpg" for name in names])

    dataset, dropped = [], {}
    for index, name in enumerate(names):
        xml_file = os.path.join(dirname, "Annotations", f"{name}.xml")
        height, width, annotations, num_dropped = _load_image(xml_file, class_names)
        dataset.append(
            {
                "file_name": os.path.join(image_dir, f"{name}.jpg"),
                "image_id": index,
                "height": height,
                "width": width,
                "annotations": annotations,
            }
        )
        if num_dropped:
            dropped[f"{name}.xml"] = num_dropped
    if dropped:
        logger.warning(
            f"left out {sum(dropped.values())} boxes without area inside the image in "
            f"{dirname} ({split}): {', '.join(dropped)}"
        )
    return dataset


def _load_bccd(dirname: str, split: str) -> list[dict[str, Any]]:
    for folder in _FOLDERS:
        path = os.path.join(dirname, folder)
        if not os.path.isdir(path):
            raise DataError(
                f"the BCCD dataset has no folder {path}: get it from the public repository "
                "Shenggan/BCCD_Dataset and set DETECTRON2_DATASETS to the folder that holds BCCD"
            )
    return load_voc_boxes(dirname, split, _CLASS_NAMES)


def register_all_bccd(root: str) -> None:
    """Registers ``bccd_train``, ``bccd_val`` and ``bccd_test`` in the folder of all datasets."""
    dirname = os.path.join(root, "BCCD")
    for split in _SPLITS:
        name = f"bccd_{split}"
        DatasetCatalog.register(name, lambda split=split: _load_bccd(dirname, split))
        MetadataCatalog.get(name).set(
            thing_classes=_CLASS_NAMES,
            evaluator_type="coco",
            image_root=os.path.join(dirname, "JPEGImages"),
        )
