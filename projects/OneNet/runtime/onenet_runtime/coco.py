"""Detections in COCO's results format, and the image ids that it needs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .detector import Detections
from .errors import AnnotationsError

__all__ = [
    "find_image_id",
    "image_ids_of_annotations",
    "image_ids_of_names",
    "to_results",
    "write_json",
]


def to_results(
    detections: Detections, image_id: int | str, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections of one image in COCO's results format.

    Args:
        detections: of the image.
        image_id: of the image.
        category_ids: of the K classes.
    """
    results = []
    for box, score, class_index, _ in zip(*detections, strict=True):
        x0, y0, x1, y1 = box.tolist()
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[class_index],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(score),
            }
        )
    return results


def image_ids_of_annotations(path: Path) -> dict[str, int]:
    """The id of each ``file_name`` in a file of COCO annotations.

    Raises:
        AnnotationsError: the file is missing or not in COCO's format.
    """
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        return {str(image["file_name"]): image["id"] for image in images}
    except OSError as error:
        raise AnnotationsError(
            f"{path} cannot be read ({error.strerror}): check the path of the annotations."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise AnnotationsError(
            f"{path} is not in COCO's format: it needs a list 'images', each with 'file_name' and"
            " 'id'."
        ) from None


def find_image_id(path: Path, ids: dict[str, int], annotations: Path) -> int:
    """The id of an image, whose path ends in the ``file_name`` of the annotations.

    Args:
        path: of the image.
        ids: see :func:`image_ids_of_annotations`.
        annotations: path of the annotations, for the message.

    Raises:
        AnnotationsError: the annotations have no such image.
    """
    parts = path.absolute().parts
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        if name in ids:
            return ids[name]
    raise AnnotationsError(
        f"{path} is not among the images of {annotations}: leave it out, or give the annotations"
        " of its data set."
    )


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
