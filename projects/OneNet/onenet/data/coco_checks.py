"""Checks of the content of a json in COCO format.

Detectron2 and pycocotools do not check such files, so mistakes surface in the middle of a run, or
as an AP near 0. These checks report them in one sentence at the start.
"""

from __future__ import annotations

import logging
import os
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from detectron2.utils.logger import log_first_n

from ..utils.errors import DataError

__all__ = ["LARGEST", "check_content", "is_box", "is_number"]

LARGEST = 1e9  # pixels; areas stay finite

_MOST_CROWD = 0.05  # of the annotations without a warning; COCO has 0.01
_TOLERANCE = 1.0  # pixels by which labelling tools leave the image
_FEWEST_CORNERS = 5  # boxes that leave their image; fewer may do so by chance
_MOST_FIT = 0.95  # of all corners, as some may be broken


def check_content(json_file: str, content: Any) -> None:
    """Checks the content of a json in COCO format, and warns of annotations that are not used.

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
        _check_box_format(json_file, annotations, sizes)
        _warn_of_crowd(json_file, annotations)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of bounded size, and not a bool."""
    return type(value) in (int, float) and abs(value) <= LARGEST


def is_box(box: Any) -> bool:
    """Whether a value is a list of four numbers; see :func:`is_number`."""
    return isinstance(box, list) and len(box) == 4 and all(is_number(value) for value in box)


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
        if not isinstance(name, str):
            raise DataError(
                f"category {category['id']} in {json_file} has the name {reprlib.repr(name)}: it"
                " must be a text, in quotes"
            )
        first = seen.setdefault(name, category["id"])
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
        if annotation.get("ignore", 0) != 0:
            raise DataError(
                f"{name} has 'ignore' set, which Detectron2 does not support: remove the "
                "annotation, or set 'iscrowd' in place of 'ignore'"
            )


def _check_box_format(
    json_file: str,
    annotations: list[dict[str, Any]],
    sizes: dict[int, tuple[float, float]],
) -> None:
    """Checks that boxes are no fractions and no corners; warns of boxes that are not used."""
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=float)
    limits = np.array([sizes[annotation["image_id"]] for annotation in annotations], dtype=float)
    low, high = boxes[:, :2], boxes[:, 2:]
    flat = (high == 0).any(axis=1)
    first = f"annotation {annotations[0]['id']} has {annotations[0]['bbox']}"
    # Of an image of one pixel, fractions and pixels are the same
    if not flat.all() and 0 <= boxes.min() and boxes.max() <= 1 and limits.max() > 1:
        raise DataError(
            f"all boxes in {json_file} lie between 0 and 1 ({first}), as fractions of the image"
            " do: write [x, y, width, height] in pixels, from the upper left corner"
        )
    _check_no_corners(json_file, annotations, boxes, limits)
    outside = ~flat & ((low >= limits) | (low + high <= 0)).any(axis=1)
    for wrong, what in ((flat, "have no area"), (outside, "lie outside their image")):
        if wrong.any():
            _warn(
                f"{wrong.sum()} boxes in {json_file} {what}: training leaves them out, evaluation"
                " counts them as objects"
            )


def _check_no_corners(
    json_file: str, annotations: list[dict[str, Any]], boxes: np.ndarray, limits: np.ndarray
) -> None:
    """Checks that the boxes, (N, 4), are not corners (x0, y0, x1, y1) in images of (N, 2) pixels.

    Corners read as sizes mostly leave the image. Few sizes all look like corners.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    leaves = (low + high > limits + _TOLERANCE).any(axis=1)
    fits = (low >= -_TOLERANCE) & (high > low) & (high <= limits + _TOLERANCE)
    fits = fits.all(axis=1)
    if leaves.mean() <= 0.5 or fits.mean() < _MOST_FIT:
        return
    first = leaves.argmax()
    width, height = limits[first]
    sentence = (
        f"{leaves.sum()} of {len(boxes)} boxes in {json_file} leave their image as [x, y, width,"
        f" height], and {fits.sum()} lie inside it as corners [x0, y0, x1, y1] (the first is"
        f" annotation {annotations[first]['id']} with {annotations[first]['bbox']} in {width:g} x"
        f" {height:g} pixels): if they are corners, subtract x0 and y0 from the last two numbers;"
        " otherwise clip them to the image"
    )
    if leaves.sum() >= _FEWEST_CORNERS:
        raise DataError(sentence)
    _warn(sentence)


def _warn_of_crowd(json_file: str, annotations: list[dict[str, Any]]) -> None:
    num_crowd = sum(annotation.get("iscrowd") == 1 for annotation in annotations)
    if num_crowd > _MOST_CROWD * len(annotations):
        _warn(
            f"{num_crowd} of {len(annotations)} annotations in {json_file} are crowd regions, which"
            " are not trained on and do not count as objects in evaluation: set their iscrowd to 0"
            " if they are single objects"
        )


def _warn(sentence: str) -> None:
    """Warns once, although training and testing may read the same file, and repeatedly."""
    log_first_n(logging.WARNING, sentence, name=__name__, key="message")
