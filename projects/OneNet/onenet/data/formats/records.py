"""What each format's reader gives, and the checks and records that all formats share."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from ...utils.errors import DataError
from ..box_checks import TOLERANCE, warn, warn_of_crowd, without_area
from ..images import read_size

__all__ = [
    "LabelledBox",
    "LabelledImage",
    "box_arrays",
    "class_number",
    "clipped",
    "fitted",
    "hold_back",
    "in_order",
    "make_records",
    "warn_of_copies",
]

_COPY = re.compile(r"\.rf\.[0-9A-Za-z]+(?=\.\w+$)")  # Roboflow's: photo_jpg.rf.<hash>.jpg
_DECIMALS = 2  # of pixels: finer than any annotation, coarser than the rounding of YOLO's fractions


@dataclass(frozen=True)
class LabelledBox:
    """An object.

    Attributes:
        where: what messages call it, with file and line.
        box: x, y, width and height in pixels of the upright image.
        class_id: from 0.
        is_crowd: whether it is a crowd region.
    """

    where: str
    box: tuple[float, float, float, float]
    class_id: int
    is_crowd: bool = False


@dataclass(frozen=True)
class LabelledImage:
    """An image file, its width and height, its objects, and whether they were scaled to it."""

    path: str
    size: tuple[int, int]
    boxes: list[LabelledBox] = field(default_factory=list)
    is_resized: bool = False


def class_number(name: str, class_names: Sequence[str], where: str) -> int:
    """Index of a class.

    Args:
        name: of the class.
        class_names: all of them.
        where: the object, for the message.

    Raises:
        DataError: the name is none of them.
    """
    if name not in class_names:
        raise DataError(
            f"{where} has an object of class {name!r}, which is none of {', '.join(class_names)}:"
            " mend the file or add the class"
        )
    return class_names.index(name)


def fitted(image: LabelledImage, source: str) -> LabelledImage:
    """Scales boxes to the image's size, if it was resized after it was annotated.

    Args:
        image: with width and height by its annotation.
        source: the annotation, for the message.

    Returns:
        The same with the size that the image has.

    Raises:
        ImageError: the image cannot be read.
        DataError: the sizes differ in their proportions.
    """
    size = read_size(image.path)
    if tuple(image.size) == size:
        return replace(image, size=size)
    x_scale, y_scale = size[0] / image.size[0], size[1] / image.size[1]
    rounding = max(abs(image.size[1] * x_scale - size[1]), abs(image.size[0] * y_scale - size[0]))
    if x_scale != 1 and y_scale != 1 and rounding < 1:
        scales = (x_scale, y_scale, x_scale, y_scale)
        boxes = [
            replace(b, box=tuple(v * scale for v, scale in zip(b.box, scales, strict=True)))
            for b in image.boxes
        ]
        return LabelledImage(image.path, size, boxes, is_resized=True)
    cause = "annotate the image as it is now, or put the original image back"
    if tuple(image.size) == size[::-1]:
        cause = (
            "if the image has an EXIF orientation, annotations must refer to the upright image:"
            " annotate it anew, or save the image and its annotation without orientation"
        )
    raise DataError(
        f"{source} gives {image.path} a size of {image.size[0]:g} x {image.size[1]:g} pixels, but"
        f" the image has {size[0]} x {size[1]}: {cause}"
    )


def clipped(
    box: Sequence[float], size: tuple[float, float]
) -> tuple[float, float, float, float] | None:
    """Clips a box to its image.

    Args:
        box: x, y, width, height.
        size: width and height of the image.

    Returns:
        The corners x0, y0, x1, y1; None if no area is left.
    """
    x, y, width, height = box
    x0, y0 = max(x, 0.0), max(y, 0.0)
    x1, y1 = min(x + width, size[0]), min(y + height, size[1])
    return (x0, y0, x1, y1) if width > 0 and height > 0 and x0 < x1 and y0 < y1 else None


def box_arrays(images: Sequence[LabelledImage]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Boxes (N, 4), width and height of their images (N, 2), and what messages call them."""
    pairs = [(image.size, box) for image in images for box in image.boxes]
    boxes = np.array([box.box for _, box in pairs], dtype=float).reshape(-1, 4)
    limits = np.array([size for size, _ in pairs], dtype=float).reshape(-1, 2)
    return boxes, limits, [box.where for _, box in pairs]


def _names(images: Sequence[LabelledImage]) -> list[str]:
    """Names relative to the folder that holds all images: the same in every format."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(image.path)) for image in images])
    return [os.path.relpath(image.path, root).replace(os.sep, "/") for image in images]


def in_order(images: Sequence[LabelledImage], source: str) -> list[LabelledImage]:
    """Sorts images by name.

    Args:
        images: of one split.
        source: the folder, for messages.

    Raises:
        DataError: there is no image, or one is given twice.
    """
    if not images:
        raise DataError(f"{source} has no images: add some, or leave the split out")
    pairs = sorted(zip(_names(images), images, strict=True), key=lambda pair: pair[0])
    for (name, image), (following, _) in zip(pairs, pairs[1:], strict=False):
        if name == following:
            raise DataError(f"{source} has the image {image.path} twice: name it once")
    return [image for _, image in pairs]


def hold_back(
    images: Sequence[LabelledImage], share: float, source: str
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Splits images by a hash of their names, whatever their order and format.

    Roboflow's copies of a photo stay together.

    Args:
        images: all images.
        share: of the images that are held back, above 0 and below 1.
        source: the folder, for messages.

    Returns:
        The images to train on, and those held back; at least one of each.

    Raises:
        DataError: there are fewer than two different images.
    """
    photos = [_COPY.sub("", name) for name in _names(images)]
    digests = [hashlib.sha256(os.fsencode(photo)).hexdigest() for photo in photos]
    ordered = sorted(digests)
    counts = [i for i in range(1, len(ordered)) if ordered[i - 1] != ordered[i]]
    if not counts:
        number = "1 image" if len(images) == 1 else f"{len(images)} copies of one photo"
        raise DataError(
            f"{source} has {number}, of which none can be held back for validation: add images, or"
            " set DATASETS.VAL_SHARE to 0 for a training without validation"
        )
    limit = ordered[min(counts, key=lambda count: abs(count - round(share * len(images))))]
    train = [image for image, digest in zip(images, digests, strict=True) if digest >= limit]
    return train, [image for image, digest in zip(images, digests, strict=True) if digest < limit]


def warn_of_copies(splits: Mapping[str, Sequence[LabelledImage]], source: str) -> None:
    """Warns if Roboflow's copies of a photo are in the training images and in another split.

    Args:
        splits: images by split.
        source: the folder, for messages.
    """
    names = {split: [os.path.basename(i.path) for i in images] for split, images in splits.items()}
    trained = {_COPY.sub("", name) for name in names.get("train", ()) if _COPY.search(name)}
    for split in sorted(set(names) - {"train"}):
        copies = [n for n in names[split] if _COPY.search(n) and _COPY.sub("", n) in trained]
        if copies:
            warn(
                f"{len(copies)} of {len(names[split])} {split} images in {source} are copies of"
                f" training photos by their names, the first is {copies[0]}; results on them are"
                " too good: split the photos before they are augmented, and export again"
            )


def make_records(images: Sequence[LabelledImage], source: str, flag: str) -> list[dict[str, Any]]:
    """Makes Detectron2's records, and warns of boxes that are changed or not used.

    Boxes are clipped to their image and rounded to 0.01 pixels; those without area are left out.

    Args:
        images: of one split, in order.
        source: the folder and split, for messages.
        flag: that marks crowd regions, for messages.

    Returns:
        One dict per image in Detectron2's standard format, with ids from 1 in their order; boxes
        are XYWH_ABS.
    """
    _warn_of_boxes(images, source, flag)
    return [
        {
            "file_name": image.path,
            "image_id": number,
            "height": image.size[1],
            "width": image.size[0],
            "annotations": _annotations(image),
        }
        for number, image in enumerate(images, start=1)
    ]


def _annotations(image: LabelledImage) -> list[dict[str, Any]]:
    annotations = []
    for box in image.boxes:
        # Before clipping, too, so that it does the same in every format
        if (corners := clipped(_rounded(box.box), image.size)) is None:
            continue
        x0, y0, x1, y1 = corners
        annotations.append(
            {
                "bbox": _rounded((x0, y0, x1 - x0, y1 - y0)),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": box.class_id,
                "iscrowd": int(box.is_crowd),
            }
        )
    return annotations


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(float(value), _DECIMALS) for value in box]


def _warn_of_boxes(images: Sequence[LabelledImage], source: str, flag: str) -> None:
    if num_resized := sum(image.is_resized for image in images):
        warn(
            f"{num_resized} of {len(images)} images in {source} were resized after they were"
            " annotated, by the sizes in the annotations: their boxes are scaled alike"
        )
    boxes, limits, names = box_arrays(images)
    flat, outside = without_area(boxes, limits)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    leaves = ((low < -TOLERANCE) | (high > limits + TOLERANCE)).any(axis=1) & ~outside & ~flat
    for which, what in (
        (flat, "have no area and are left out"),
        (outside, "lie outside their image and are left out"),
        (leaves, "leave their image by more than a pixel and are clipped to it"),
    ):
        if which.any():
            warn(
                f"{which.sum()} of {len(boxes)} boxes in {source} {what}; the first is"
                f" {names[which.argmax()]}"
            )
    num_crowd = sum(box.is_crowd for image in images for box in image.boxes)
    warn_of_crowd(source, num_crowd, len(boxes), flag)
