"""Datasets given as a folder in COCO's, YOLO's or Pascal VOC's format, recognised by looking."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...utils.errors import ConfigError, DataError
from ..box_checks import tell, warn
from .coco import find_coco, read_coco
from .layout import Layout, look_at
from .records import LabelledImage, hold_back, in_order, make_records, warn_of_copies
from .voc import find_voc, read_voc
from .yolo import find_yolo, read_yolo

__all__ = ["register_folder"]

Reader = Callable[[Layout], tuple[list[str], dict[str, list[LabelledImage]]]]
_FORMATS: dict[str, tuple[str, Callable[[Layout], list[str]], Reader, str]] = {
    # name, what finds its files, what reads them, what marks crowd regions
    "coco": ("COCO", find_coco, read_coco, "iscrowd"),
    "yolo": ("YOLO", find_yolo, read_yolo, ""),
    "voc": ("Pascal VOC", find_voc, read_voc, "<difficult>"),
}


def register_folder(folder: str, format: str = "", val_share: float = 0.2) -> dict[str, str]:
    """Checks a folder of images and annotations, and registers its splits with Detectron2.

    The same images and boxes give the same records in every format: images by name, with ids from
    1; classes by id (COCO), number (YOLO) or alphabet (Pascal VOC); boxes rounded to 0.01 pixels.
    Registering a folder again reads it again.

    Args:
        folder: of the dataset.
        format: "coco", "yolo" or "voc"; "" to recognise it.
        val_share: of the training images, held back for validation if the folder has no split for
            that; 0 for no validation. Which ones depends on their names only.

    Returns:
        The names of the datasets by split, "train", "val" and "test" where they exist. A name
        has the folder, format, split and, for images held back, their share.

    Raises:
        ConfigError: `format` or `val_share` is wrong.
        DataError: the folder cannot be used; names file, line and cure.
    """
    if format and format not in _FORMATS:
        raise ConfigError(
            f"DATASETS.FORMAT is '{format}'; choose one of {', '.join(_FORMATS)}, or '' to"
            " recognise it."
        )
    if not 0 <= val_share < 1:
        raise ConfigError(f"DATASETS.VAL_SHARE is {val_share}; give a number from 0 to below 1.")
    layout = look_at(os.path.normpath(folder))
    format = _recognised(layout, format)
    title, _, read, flag = _FORMATS[format]
    class_names, splits = read(layout)
    splits = {split: in_order(splits[split], layout.folder) for split in sorted(splits)}
    warn_of_copies(splits, layout.folder)
    _warn_of_case(layout.folder, class_names)
    share = ""
    if "val" not in splits and "train" in splits and val_share:
        share = f" {val_share:g}"
        splits["train"], splits["val"] = hold_back(splits["train"], val_share, layout.folder)
    names = {}
    for split in (split for split in ("train", "val", "test") if split in splits):
        suffix = share if split != "test" else ""
        names[split] = f"{layout.folder} ({format}, {split}{suffix})"
    records = {s: make_records(splits[s], names[s], flag) for s in names}
    for split, name in names.items():
        _register(name, records[split], class_names)
    _tell_counts(f"{layout.folder} is read as {title}", class_names, records, share)
    return names


def _recognised(layout: Layout, format: str) -> str:
    """The format: the given one, or the only one of which there are files."""
    found = {key: files[0] for key, (_, find, *_) in _FORMATS.items() if (files := find(layout))}
    if format and format not in found:
        others = f"; there is {_listed(found)}" if found else ""
        raise DataError(
            f"DATASETS.FORMAT is '{format}', and {layout.folder} has no annotations in"
            f" {_FORMATS[format][0]} format{others}"
        )
    if not found:
        others = layout.ending(".txt", ".json", ".xml", ".yaml")
        seen = f" ({len(others)} text files, the first is {others[0]})" if others else ""
        raise DataError(
            f"{layout.folder} has {len(layout.images())} images and {len(layout.files)} files"
            f"{seen}, and no annotations in COCO (a json with images and annotations), YOLO"
            " (data.yaml, or a txt for each image, beside it or in a folder labels beside images)"
            " or Pascal VOC (an xml for each image) format: check the path, and export the"
            " annotations in one of these"
        )
    if not format and len(found) > 1:
        raise DataError(
            f"{layout.folder} has annotations in several formats, {_listed(found)}: choose one by"
            f" DATASETS.FORMAT {' or '.join(found)}"
        )
    return format or next(iter(found))


def _listed(found: dict[str, str]) -> str:
    return " and ".join(f"{_FORMATS[key][0]} ({file})" for key, file in found.items())


def _warn_of_case(folder: str, class_names: list[str]) -> None:
    first: dict[str, str] = {}
    for name in class_names:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            warn(
                f"{folder} has the classes '{other}' and '{name}', which differ in upper and lower"
                " case only, as two classes: rename one if they are the same"
            )


def _register(name: str, records: list[dict[str, Any]], class_names: list[str]) -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: copy.deepcopy(records))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), evaluator_type="coco")


def _tell_counts(
    begin: str, class_names: list[str], records: dict[str, list[dict[str, Any]]], share: str
) -> None:
    counts = []
    for split, of_split in records.items():
        num_objects = sum(len(record["annotations"]) for record in of_split)
        counts.append(f"{split} {len(of_split)} images with {num_objects} objects")
    held = f"; val is held back from train (DATASETS.VAL_SHARE{share})" if share else ""
    tell(
        f"{begin}: {len(class_names)} classes ({', '.join(class_names[:10])}"
        f"{', ...' if len(class_names) > 10 else ''}); {', '.join(counts)}{held}."
    )
