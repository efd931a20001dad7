"""Detections in COCO's results format, and the image ids that it needs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import AnnotationsError
from .predictor import Found

__all__ = [
    "Annotations",
    "image_ids_of_names",
    "to_results",
    "write_json",
]

_MAX_BYTES = 2**33  # COCO's own annotations have 0.5 GB, those of Objects365 about 3


def to_results(
    found: Found, image_id: int | str, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections of one image in COCO's results format.

    Args:
        found: in the image.
        image_id: of the image.
        category_ids: of the K classes.
    """
    results = []
    for box, score, class_id in zip(*found, strict=True):
        x0, y0, x1, y1 = box.tolist()
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[class_id],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(score),
            }
        )
    return results


@dataclass(frozen=True)
class Annotations:
    """What a file of COCO annotations says of its images and categories.

    Attributes:
        path: of the file, for messages.
        image_ids: the id of each ``file_name``.
        categories: id and name of each category.
    """

    path: Path
    image_ids: dict[str, int]
    categories: list[tuple[int, str]]

    @classmethod
    def read(cls, path: Path) -> Annotations:
        """Reads a file.

        Raises:
            AnnotationsError: the file is missing or not in COCO's format.
        """
        try:
            content = json.loads(_read_text(path))
            image_ids = {str(image["file_name"]): image["id"] for image in content["images"]}
            categories = [(int(c["id"]), str(c["name"])) for c in content.get("categories", [])]
        except AnnotationsError:
            raise
        except OSError as error:
            raise AnnotationsError(
                f"{path} cannot be read ({error.strerror}): check the path of the annotations."
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise AnnotationsError(
                f"{path} is not in COCO's format: it needs a list 'images', each with 'file_name'"
                " and 'id', and a list 'categories', each with 'name' and 'id'."
            ) from None
        return cls(path, image_ids, categories)

    def find_image_id(self, path: Path) -> int:
        """The id of an image, whose path ends in the ``file_name`` of the annotations.

        Raises:
            AnnotationsError: the annotations have no such image.
        """
        parts = path.absolute().parts
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in self.image_ids:
                return self.image_ids[name]
        raise AnnotationsError(
            f"{path} is not among the images of {self.path}: leave it out, or give the annotations"
            " of its data set."
        )

    def find_category_ids(
        self, class_names: Sequence[str], model_ids: Sequence[int] | None
    ) -> list[int]:
        """The category ids of a model's classes, found by name.

        Args:
            class_names: of the K classes.
            model_ids: the model's own; None where it has none. A class that the annotations lack
                keeps its id, unless that is another category's.

        Raises:
            AnnotationsError: no name is among the categories; or one is not, and has no id to keep;
                or several categories or classes have it.
        """
        names = [name for _, name in self.categories]
        if not set(class_names) & set(names) and (names or model_ids is None):
            raise AnnotationsError(
                f"None of the model's classes ({_listed(class_names)}) is among the categories of"
                f" {self.path} ({_listed(names)}): give the annotations of a data set with these"
                " classes."
            )
        own: Sequence[int | None] = [None] * len(class_names) if model_ids is None else model_ids
        return [
            self._find_category_id(name, class_names.count(name), own_id)
            for name, own_id in zip(class_names, own, strict=True)
        ]

    def _find_category_id(self, name: str, classes: int, own_id: int | None) -> int:
        ids = [category_id for category_id, other in self.categories if other == name]
        if own_id in ids:
            return own_id
        if len(ids) > 1 or (ids and classes > 1):
            raise AnnotationsError(
                f"{name!r} is the name of {classes} of the model's classes and {len(ids)} of the"
                f" categories of {self.path}: give annotations and a model with one of each."
            )
        if ids:
            return ids[0]
        other = dict(self.categories).get(own_id) if own_id is not None else None
        if own_id is None or other is not None:
            why = f", and its id {own_id} is that of {other!r} there" if other is not None else ""
            raise AnnotationsError(
                f"The model's class {name!r} is not among the categories of {self.path}{why}: give"
                " the annotations of the data set that it was trained on."
            )
        return own_id


def _listed(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(repr, names[:10])) + more if names else "none"


def _read_text(path: Path) -> str:
    content = bytearray()
    with path.open("rb") as file:
        # In pieces, as a single read asks for as much memory as it may return
        size = os.fstat(file.fileno()).st_size
        while size <= _MAX_BYTES and (piece := file.read(2**20)):
            content += piece
            size = len(content)
    if size > _MAX_BYTES:
        raise AnnotationsError(
            f"{path} is larger than {_MAX_BYTES:,} bytes, the most that is read: leave out its"
            " 'annotations', which are not needed."
        )
    return content.decode("utf-8-sig")  # a byte order mark is not json


def image_ids_of_names(paths: Sequence[Path]) -> list[int | str]:
    """Ids of images without annotations.

    Returns:
        The names as numbers where all are different numbers ("000139.jpg" is 139); else the names
        where all are different; else the paths.
    """
    stems = [path.stem for path in paths]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers: list[int | str] = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    names: list[int | str] = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    return [path.as_posix() for path in paths]


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is there in full or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
