"""COCO results files of any detector, checked and joined with their annotations."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..data.box_checks import LARGEST, check_corners, check_fractions, is_box, is_number
from ..data.coco_checks import check_content
from ..utils.errors import DataError
from ..utils.files import read_json
from .scenes import Scenes

__all__ = ["Annotations", "Results", "read_annotations", "read_results"]

_KEYS = ("image_id", "category_id", "bbox", "score")
_NEEDS = "COCO's results are a list of objects with 'image_id', 'category_id', 'bbox' and 'score'"
_FEWEST_CAPPED = 10  # detections of an image; fewer may be equal by chance
_LOW_SCORE = 0.05


@dataclass(frozen=True)
class Annotations:
    """Checked annotations in COCO format.

    Attributes:
        path: of the file.
        content: of the file.
    """

    path: str
    content: dict[str, Any]

    @cached_property
    def images(self) -> dict[int, dict[str, Any]]:
        """The images by id, in the order of the ids."""
        return {i["id"]: i for i in sorted(self.content["images"], key=lambda i: i["id"])}

    @cached_property
    def class_names(self) -> dict[int, str]:
        """The names by category id, in the order of the ids, which is that of the classes."""
        return {c["id"]: c["name"] for c in sorted(self.content["categories"], key=_id)}

    @cached_property
    def classes(self) -> dict[int, int]:
        """The classes, from 0, by category id."""
        return {category: index for index, category in enumerate(self.class_names)}

    def scenes(self, results: Results) -> Scenes:
        """Joins detections with the annotations; images are in the order of their ids."""
        indices = {image_id: index for index, image_id in enumerate(self.images)}
        annotations = sorted(self.content["annotations"], key=lambda a: indices[a["image_id"]])
        return Scenes(
            len(self.images),
            results.images,
            results.boxes,
            results.scores,
            results.classes,
            np.array([indices[a["image_id"]] for a in annotations], dtype=np.int64),
            np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4),
            np.array([self.classes[a["category_id"]] for a in annotations], dtype=np.int64),
            np.array([a.get("iscrowd") or 0 for a in annotations], dtype=bool),
        )


@dataclass(frozen=True)
class Results:
    """The detections of a results file, ordered by image.

    Attributes:
        images: (D,) int64, indices into :attr:`Annotations.images`.
        boxes: (D, 4) float64, x, y, width, height in pixels.
        scores: (D,) float64 in [0, 1].
        classes: (D,) int64.
        notes: sentences on what the file leaves out.
    """

    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    notes: list[str]


def _id(entry: Mapping[str, Any]) -> int:
    return entry["id"]


def read_annotations(path: str | os.PathLike[str]) -> Annotations:
    """Reads annotations in COCO format, without their images.

    Raises:
        DataError: the file cannot be used; the message names the file, the entry and the fix.
    """
    path = os.fspath(path)
    content = _read(path)
    if isinstance(content, list):
        raise DataError(
            f"{path} is a list, as a results file is, and no annotations: give the json with"
            " 'images', 'annotations' and 'categories' that the detections belong to"
        )
    check_content(path, content)
    return Annotations(path, content)


def read_results(path: str | os.PathLike[str], annotations: Annotations) -> Results:
    """Reads the detections of a COCO results file.

    Args:
        path: a json: a list of objects with ``image_id``, ``category_id``, ``bbox`` (x, y, width,
            height in pixels) and ``score``. Where an entry has the ``file_name`` of one image, that
            image counts and not its ``image_id``. Other keys are ignored.
        annotations: of the same images.

    Raises:
        DataError: the file cannot be used; the message names the file, the entry and the fix.
    """
    path = os.fspath(path)
    content = _read(path)
    _check_list(path, content, annotations)
    _, category_ids, boxes, scores = ([entry[key] for entry in content] for key in _KEYS)
    indices = {image_id: index for index, image_id in enumerate(annotations.images)}
    images = _known(path, "image_id", _image_ids(content, annotations), indices, annotations)
    classes = _known(path, "category_id", category_ids, annotations.classes, annotations)
    boxes = _checked_boxes(path, boxes, images, annotations)
    scores = _checked_scores(path, scores)
    order = np.argsort(images, kind="stable")
    return Results(
        images[order],
        boxes[order],
        scores[order],
        classes[order],
        _notes(images, scores, len(indices)),
    )


def _read(path: str) -> Any:
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise DataError(f"{path} is an empty file: write it anew")
    return read_json(path)


def _check_list(path: str, content: Any, annotations: Annotations) -> None:
    if isinstance(content, dict) and "annotations" in content:
        raise DataError(f"{path} is a file of annotations, and no results: {_NEEDS}")
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}: {_NEEDS}")
    if not content:
        raise DataError(
            f"{path} has no detections: check the detector's score threshold, and that it ran on"
            f" the images of {annotations.path}"
        )
    for index, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise DataError(
                f"detection {index} in {path} is no object but {reprlib.repr(entry)}: {_NEEDS}"
            )
        for key in _KEYS:
            if key not in entry:
                raise DataError(f"detection {index} in {path} has no '{key}': {_NEEDS}")


def _image_ids(content: list[dict[str, Any]], annotations: Annotations) -> list[Any]:
    """The id of each detection's image, by the stem of ``file_name`` where that is of one image.

    Ultralytics makes an image_id of the digits in a file's name; it may be another image's id.
    """
    named: dict[str, list[int]] = {}
    for image_id, image in annotations.images.items():
        named.setdefault(Path(image["file_name"]).stem, []).append(image_id)
    stems = (Path(str(entry.get("file_name", ""))).stem for entry in content)
    found = (named.get(stem, ()) for stem in stems)
    return [
        ids[0] if len(ids) == 1 else entry["image_id"]
        for ids, entry in zip(found, content, strict=True)
    ]


def _first(values: Sequence[Any], is_right: Callable[[Any], bool]) -> int:
    """Index of the first wrong value."""
    return next(i for i, value in enumerate(values) if not is_right(value))


def _numbers(values: list[Any]) -> np.ndarray | None:
    """The values as floats; None unless all are finite numbers of bounded size."""
    if not set(map(type, values)) <= {int, float}:
        return None
    try:
        array = np.array(values, dtype=float)
    except OverflowError:
        return None
    return array if (np.abs(array) <= LARGEST).all() else None


def _known(
    path: str, key: str, values: list[Any], known: Mapping[int, int], annotations: Annotations
) -> np.ndarray:
    """The indices of ids."""
    if set(map(type, values)) == {int}:
        found = np.array([known.get(value, -1) for value in values])
        if (found >= 0).all():
            return found
    wrong = _first(values, lambda value: type(value) is int and value in known)
    value, ids = values[wrong], list(known)
    cure = "write the ids of that file"
    if key == "category_id":
        cure += ", not the detector's own class numbers"
    elif isinstance(value, str):
        cure += ", not names of files"
    where = "images" if key == "image_id" else "categories"
    raise DataError(
        f"detection {wrong} in {path} has the {key} {reprlib.repr(value)}, which is not in the"
        f" '{where}' of {annotations.path} (ids from {min(ids)} to {max(ids)}): {cure}"
    )


def _checked_boxes(
    path: str, boxes: list[Any], images: np.ndarray, annotations: Annotations
) -> np.ndarray:
    """(D, 4)."""
    array = None
    if set(map(type, boxes)) == {list} and set(map(len, boxes)) == {4}:
        array = _numbers(list(chain.from_iterable(boxes)))
    if array is None:
        wrong = _first(boxes, is_box)
        raise DataError(
            f"detection {wrong} in {path} has the bbox {reprlib.repr(boxes[wrong])}: it must be"
            f" four finite numbers of at most {LARGEST:.0e}, [x, y, width, height] in pixels"
        )
    array = array.reshape(-1, 4)
    limits = np.array([(i["width"], i["height"]) for i in annotations.images.values()], float)
    names = [f"detection {index}" for index in range(len(array))]
    # Predicted fractions may leave the image a little
    clipped = np.clip(array, 0, 1) if np.abs(array).max() < 2 else array
    check_fractions(path, clipped, limits[images], names)
    check_corners(path, array, limits[images], names)
    if (array[:, 2:] < 0).any():
        wrong = int((array[:, 2:] < 0).any(axis=1).argmax())
        raise DataError(
            f"detection {wrong} in {path} has the bbox {boxes[wrong]}, whose width or height is"
            " negative: write [x, y, width, height] in pixels, from the upper left corner"
        )
    return array


def _checked_scores(path: str, scores: list[Any]) -> np.ndarray:
    """(D,)."""

    def is_right(score: Any) -> bool:
        return is_number(score) and 0 <= score <= 1

    array = _numbers(scores)
    if array is not None and ((array >= 0) & (array <= 1)).all():
        return array
    wrong = _first(scores, is_right)
    raise DataError(
        f"detection {wrong} in {path} has the score {reprlib.repr(scores[wrong])}: scores are"
        " numbers from 0 to 1, so apply the sigmoid or softmax to logits, divide percentages by"
        " 100, and leave out detections without a score"
    )


def _notes(images: np.ndarray, scores: np.ndarray, num_images: int) -> list[str]:
    """Sentences on what a file seems to leave out."""
    notes = []
    counts = np.bincount(images, minlength=num_images)
    most = counts.max()
    at_limit = counts == most
    if most >= _FEWEST_CAPPED and at_limit.sum() > num_images / 2:
        notes.append(
            # Without counts, so that several files share the note
            f"most images have exactly {most} detections, and none has more: the detector seems to"
            " stop there, so duplicates and objects of lower scores are not seen"
        )
        scores = scores[~at_limit[images]]
    lowest = scores.min(initial=1)
    if _LOW_SCORE < lowest < 1:
        notes.append(
            f"the lowest score is {lowest:.3g}: if the detector leaves out lower ones, AP and"
            " recall are too low, and duplicates below are not seen; write all from about 0.001 up"
        )
    if (found := int((counts > 0).sum())) <= num_images / 2:
        notes.append(
            f"only {found} of {num_images} images have detections: the others count as images in"
            " which nothing was found"
        )
    return notes
