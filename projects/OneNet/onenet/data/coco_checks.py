"""Checks of the content of a json in COCO format.

Detectron2 and pycocotools do not check such files, so mistakes surface in the middle of a run, or
as an AP near 0. These checks report them in one sentence at the start.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..utils.errors import DataError
from .box_checks import (
    LARGEST,
    check_corners,
    check_fractions,
    is_box,
    is_number,
    warn,
    warn_of_crowd,
    without_area,
)

__all__ = ["check_content", "warn_of_content"]


def check_content(json_file: str, content: Any) -> None:
    """Checks the content of a json in COCO format.

    Args:
        json_file: for the messages.
        content: of the file.

    Raises:
        DataError: the content cannot be used; the message names the file, the entry and the fix.
    """
    _check_lists(json_file, content)
    categories, images = content["categories"], content["images"]
    annotations = content["annotations"]
    category_ids = _unique_ids(json_file, categories, "category", ["name"])
    _check_categories(json_file, categories)
    _unique_ids(json_file, images, "image", ["file_name", "width", "height"])
    _check_images(json_file, images)
    _unique_ids(json_file, annotations, "annotation", ["image_id", "category_id", "bbox"])
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    _check_annotations(json_file, annotations, sizes, category_ids)
    if annotations:
        boxes, limits = _arrays(content)
        names = [f"annotation {annotation['id']}" for annotation in annotations]
        check_fractions(json_file, boxes, limits, names)
        check_corners(json_file, boxes, limits, names)


def warn_of_content(json_file: str, content: dict[str, Any]) -> None:
    """Warns of annotations that are not used.

    Args:
        json_file: for the messages.
        content: of the file, checked.
    """
    annotations = content["annotations"]
    if not annotations:
        return
    flat, outside = without_area(*_arrays(content))
    for wrong, what in ((flat, "have no area"), (outside, "lie outside their image")):
        if wrong.any():
            warn(
                f"{wrong.sum()} boxes in {json_file} {what}: training leaves them out, evaluation"
                " counts them as objects"
            )
    num_crowd = sum(annotation.get("iscrowd") == 1 for annotation in annotations)
    warn_of_crowd(json_file, num_crowd, len(annotations), "iscrowd")


def _arrays(content: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4), and the width and height of their images (N, 2)."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    boxes = np.array([a["bbox"] for a in content["annotations"]], dtype=float)
    return boxes, np.array([sizes[a["image_id"]] for a in content["annotations"]], dtype=float)


def _check_lists(json_file: str, content: Any) -> None:
    """Checks that the three lists are there."""
    if not isinstance(content, dict):
        raise DataError(
            f"{json_file} holds a {type(content).__name__} where COCO's format has an object with "
            "the keys 'images', 'annotations' and 'categories'"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(
                f"{json_file} has no list '{key}': COCO's format needs 'images', 'annotations' and "
                "'categories'"
            )
        # A dataset may have no objects, for instance to count false positives
        if not content[key] and key != "annotations":
            raise DataError(
                f"the list '{key}' in {json_file} is empty: it needs at least one entry"
            )


def _unique_ids(json_file: str, entries: list[Any], kind: str, keys: Iterable[str]) -> set[Any]:
    """Checks that all entries have unique ids and the given keys; returns the ids."""
    ids = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(
                f"{kind} number {index} in {json_file} is not an object: {reprlib.repr(entry)}"
            )
        entry_id = entry.get("id")
        if not isinstance(entry_id, int):
            raise DataError(
                f"{kind} number {index} in {json_file} has no integer 'id' (found"
                f" {reprlib.repr(entry_id)}): COCO's format needs one, different for each {kind}"
            )
        if entry_id in ids:
            raise DataError(
                f"{json_file} has the {kind} id {entry_id} twice: give each {kind} its own"
            )
        for key in keys:
            if key not in entry:
                raise DataError(f"{kind} {entry_id} in {json_file} has no '{key}': add it")
        ids.add(entry_id)
    return ids


def _check_categories(json_file: str, categories: list[dict[str, Any]]) -> None:
    seen: dict[str, int] = {}
    for category in categories:
        name = category["name"]
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"category {category['id']} in {json_file} has the name {reprlib.repr(name)}: it"
                " must be a text, in quotes"
            )
        first = seen.setdefault(name.strip(), category["id"])
        if first != category["id"]:
            raise DataError(
                f"the categories {first} and {category['id']} in {json_file} both have the name"
                f" {name!r}: rename one, or merge the two"
            )


def _check_images(json_file: str, images: list[dict[str, Any]]) -> None:
    seen: dict[str, int] = {}
    for image in images:
        name = f"image {image['id']} in {json_file}"
        file_name = image["file_name"]
        if not isinstance(file_name, str):
            raise DataError(f"{name} has the file_name {file_name!r}: it must be a text")
        for key in ("width", "height"):
            if not is_number(image[key]) or image[key] <= 0:
                raise DataError(
                    f"{name} has the {key} {image[key]!r}: it must be a number above 0, in pixels"
                )
        first = seen.setdefault(os.path.normpath(file_name), image["id"])
        if first != image["id"]:
            raise DataError(
                f"{name} has the file_name {file_name!r} of image {first}: remove one of the two,"
                " and give its annotations the image_id of the other"
            )


def _check_annotations(
    json_file: str,
    annotations: list[dict[str, Any]],
    sizes: dict[int, tuple[float, float]],
    category_ids: set[int],
) -> None:
    references = {"image_id": ("images", sizes), "category_id": ("categories", category_ids)}
    for annotation in annotations:
        name = f"annotation {annotation['id']} in {json_file}"
        for key, (where, known) in references.items():
            if not isinstance(annotation[key], int) or annotation[key] not in known:
                raise DataError(
                    f"{name} has {key} {reprlib.repr(annotation[key])}, which is not in '{where}':"
                    " add it there or mend the annotation"
                )
        box = annotation["bbox"]
        if not is_box(box):
            raise DataError(
                f"{name} has the bbox {reprlib.repr(box)}: it must be four finite numbers of at"
                f" most {LARGEST:.0e}, [x, y, width, height] in pixels"
            )
        if min(box[2:]) < 0:  # Detectron2 would train on the mirrored box
            raise DataError(
                f"{name} has the bbox {box}, whose width or height is negative: mend it to [x, y,"
                " width, height] in pixels, from the upper left corner, or remove the annotation"
            )
        if annotation.get("iscrowd") not in (0, 1, None):
            raise DataError(
                f"{name} has the iscrowd {annotation['iscrowd']!r}: it must be 1 for a region of"
                " many objects, else 0"
            )
        if annotation.get("ignore", 0) != 0:
            raise DataError(
                f"{name} has 'ignore' set, which Detectron2 does not support: remove the "
                "annotation, or set 'iscrowd' in place of 'ignore'"
            )
