"""CrowdHuman: conversion of .odgt annotations to COCO format on first use, and registration.

An .odgt file has one json per line and image (https://www.crowdhuman.org/download.html, arXiv
1805.00123). It has no image sizes; they are read from the images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import reprlib
from collections.abc import Iterator
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from iopath.common.file_io import file_lock
from tqdm import tqdm

from ..utils.errors import DataError
from ..utils.files import write_whole
from .box_checks import LARGEST, is_box, is_number
from .image_names import check_images_exist
from .images import read_size

__all__ = ["convert_odgt", "make_crowdhuman", "register_all_crowdhuman", "register_crowdhuman"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
CONVERSION_VERSION = 2  # increase with every change of the json

_FOLDER = "crowdhuman"
_CLASS_NAMES = ["person"]
_HOW_TO_GET = (
    "for crowdhuman_train and crowdhuman_val get annotation_train.odgt, annotation_val.odgt and the"
    " images from CrowdHuman's website, put all images into one folder Images beside the two files,"
    f" and set DETECTRON2_DATASETS to the folder that holds their folder '{_FOLDER}'"
)


def _json_file(odgt_file: str) -> str:
    return f"{odgt_file.removesuffix('.odgt')}.json"


def _check_gtbox(place: str, gtbox: Any) -> None:
    if not isinstance(gtbox, dict) or not isinstance(gtbox.get("tag"), str):
        raise DataError(f"{place} has a box without 'tag': mend or remove the line")
    for key in ("fbox", "vbox"):
        if key in gtbox and not is_box(gtbox[key]):
            raise DataError(
                f"{place} has the '{key}' {reprlib.repr(gtbox[key])}: it must be four numbers of at"
                f" most {LARGEST:.0e}, [x, y, width, height] in pixels"
            )
    if "fbox" not in gtbox:
        raise DataError(f"{place} has a box without 'fbox', the full box: add it")
    extra = gtbox.get("extra", {})
    if not isinstance(extra, dict):
        raise DataError(
            f"{place} has the 'extra' {reprlib.repr(extra)}, which is no object: mend it"
        )
    if not is_number(extra.get("ignore", 0)):
        raise DataError(
            f"{place} has the 'extra.ignore' {reprlib.repr(extra['ignore'])}: it must be a number,"
            " 0 or 1"
        )


def _read_odgt(odgt_file: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields each image's name, without suffix, and its checked boxes."""
    seen: dict[str, int] = {}  # the images' line numbers
    with open(odgt_file, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"line {number} of {odgt_file}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # no json, no text, or nested too deeply
                raise DataError(
                    f"{place} is not valid json ({error}): get the file again, or mend the line"
                ) from error
            if not isinstance(record, dict) or not isinstance(record.get("ID"), str):
                raise DataError(f"{place} has no 'ID', the image's name: mend or remove it")
            if not isinstance(record.get("gtboxes"), list):
                raise DataError(f"{place} has no list 'gtboxes': mend or remove it")
            first = seen.setdefault(os.path.normpath(record["ID"]), number)
            if first != number:
                raise DataError(
                    f"{place} has the ID '{record['ID']}' again, the image of line {first}: remove"
                    " one of the two"
                )
            for gtbox in record["gtboxes"]:
                _check_gtbox(place, gtbox)
            yield record["ID"], record["gtboxes"]


def _annotation(gtbox: dict[str, Any]) -> dict[str, Any]:
    """COCO annotation of a box, without ids."""
    is_ignore = gtbox["tag"] != "person" or gtbox.get("extra", {}).get("ignore", 0) != 0
    x, y, width, height = gtbox["fbox"]
    width, height = max(width, 0), max(height, 0)  # Detectron2 would train on the mirrored box
    return {
        "category_id": 1,
        "bbox": [x, y, width, height],
        **({"vis_bbox": gtbox["vbox"]} if "vbox" in gtbox else {}),
        "area": width * height,
        # Detectron2 does not support 'ignore'
        "iscrowd": int(is_ignore),
    }


def convert_odgt(odgt_file: str, image_dir: str) -> dict[str, Any]:
    """Converts an .odgt file to COCO format.

    ``bbox`` is the full box and ``vis_bbox`` the visible one, if given, as x, y, width, height in
    pixels; ``iscrowd`` is 1 for ignore regions, which are boxes of another tag than "person" or
    with ``extra.ignore`` set. Boxes may leave the image; training and evaluation clip them.
    Negative widths and heights of ``bbox`` become 0, and training drops such boxes.

    Args:
        odgt_file: path of the annotations.
        image_dir: folder with ``<ID>.jpg`` for each line.

    Returns:
        The content of a json in COCO format with the category "person". Ids count from 1 in the
        order of the lines.

    Raises:
        DataError: a line is broken, or an image missing or broken; names file and line.
    """
    lines = list(_read_odgt(odgt_file))
    if not lines:
        raise DataError(f"{odgt_file} is empty: get the file again")
    file_names = [f"{name}.jpg" for name, _ in lines]
    check_images_exist(odgt_file, image_dir, file_names)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    described = f"reading image sizes for {os.path.basename(odgt_file)}"
    for file_name, (_, gtboxes) in zip(tqdm(file_names, desc=described), lines, strict=True):
        width, height = read_size(os.path.join(image_dir, file_name))
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for gtbox in gtboxes:
            ids = {"id": len(annotations) + 1, "image_id": image_id}  # COCOeval: 0 is no match
            annotations.append({**ids, **_annotation(gtbox)})
    return {
        "info": {"description": f"converted from {os.path.basename(odgt_file)}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": name} for name in _CLASS_NAMES],
    }


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _make(odgt_file: str, image_dir: str, json_file: str) -> None:
    """Writes the json, and a recipe file that tells what it was made from."""
    recipe_file = f"{json_file}.recipe"
    source = {
        "version": CONVERSION_VERSION,
        "odgt": _digest(odgt_file),
        # Relative, so that a dataset can be moved to a read-only folder
        "images": os.path.relpath(image_dir, os.path.dirname(os.path.abspath(odgt_file))),
    }

    def recipe() -> bytes:
        return json.dumps({**source, "json": _digest(json_file)}).encode()

    def is_made() -> bool:
        if not (os.path.isfile(json_file) and os.path.isfile(recipe_file)):
            return False
        with open(recipe_file, "rb") as file:
            return file.read() == recipe()

    # No lock if nothing is to be done: the folder may be read-only
    if is_made():
        return
    with file_lock(json_file):
        if not is_made():  # another process may have made it
            logger.info(f"Converting {odgt_file} to {json_file} ...")
            write_whole(json_file, json.dumps(convert_odgt(odgt_file, image_dir)).encode())
            write_whole(recipe_file, recipe())  # last, as it marks the json as complete


def make_crowdhuman(odgt_file: str, image_dir: str) -> str:
    """Creates ``<name>.json`` beside ``<name>.odgt`` unless it is up to date.

    Can be called by several processes at once. A json that is incomplete, damaged, or of another
    .odgt file or image folder is created again. Changed images are not noticed.

    Args:
        odgt_file: see :func:`convert_odgt`.
        image_dir: see :func:`convert_odgt`.

    Returns:
        Path of the json.

    Raises:
        DataError: a file is missing or broken, or the folder is not writable.
    """
    for path, is_there in ((odgt_file, os.path.isfile), (image_dir, os.path.isdir)):
        if not is_there(path):
            raise DataError(f"there is no {path}: check the path; {_HOW_TO_GET}")
    json_file = _json_file(odgt_file)
    try:
        _make(odgt_file, image_dir, json_file)
    except OSError as error:
        folder = os.path.dirname(os.path.abspath(json_file))
        raise DataError(
            f"{json_file} cannot be made ({error}): let the folder {folder} be read, and written"
            " for the first use, or link its content into one that can be"
        ) from error
    return json_file


def _warn_of_flat(odgt_file: str, records: list[dict[str, Any]]) -> None:
    annotations = [a for record in records for a in record["annotations"]]
    num_flat = sum(min(a["bbox"][2:]) <= 0 and not a["iscrowd"] for a in annotations)
    if num_flat:
        logger.warning(
            f"{num_flat} boxes of people in {odgt_file} have no area: training leaves them out, "
            "evaluation counts them as objects"
        )


def register_crowdhuman(name: str, odgt_file: str, image_dir: str) -> None:
    """Registers an .odgt file with Detectron2; it is converted when first loaded.

    Args:
        name: of the dataset; may already be registered for the same files.
        odgt_file: see :func:`make_crowdhuman`; the json is created beside it.
        image_dir: see :func:`make_crowdhuman`.

    Raises:
        DataError: the name is registered for other files.
    """
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        if (known.get("odgt_file"), known.get("image_root")) == (odgt_file, image_dir):
            return
        raise DataError(f"the name '{name}' is that of another dataset: choose another one")
    json_file = _json_file(odgt_file)

    def load() -> list[dict[str, Any]]:
        make_crowdhuman(odgt_file, image_dir)
        records = load_coco_json(json_file, image_dir, name)
        file_names = [os.path.relpath(record["file_name"], image_dir) for record in records]
        check_images_exist(odgt_file, image_dir, file_names)  # they may be missing by now
        _warn_of_flat(odgt_file, records)
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=_CLASS_NAMES,
        thing_dataset_id_to_contiguous_id={1: 0},
        evaluator_type="crowdhuman",
        odgt_file=odgt_file,
        json_file=json_file,
        image_root=image_dir,
    )


def register_all_crowdhuman(root: str) -> None:
    """Registers ``crowdhuman_train`` and ``crowdhuman_val`` in the folder of all datasets."""
    folder = os.path.join(root, _FOLDER)
    for split in SPLITS:
        odgt_file = os.path.join(folder, f"annotation_{split}.odgt")
        register_crowdhuman(f"crowdhuman_{split}", odgt_file, os.path.join(folder, "Images"))
