"""Reading of YOLO's format: one text file an image, one line an object, in fractions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import PurePosixPath

from ...utils.errors import DataError
from ..box_checks import tell, warn
from ..images import read_size
from .layout import Layout, read_lines
from .records import LabelledBox, LabelledImage
from .yolo_files import NAME_FILES, YoloFiles, find_description, read_description

__all__ = ["find_yolo", "read_yolo"]

_TOLERANCE = 1e-3  # of the image, by which rounded fractions leave it
_SHORTEST_POLYGON = 7  # values of a line with a class and three corners


def find_yolo(layout: Layout) -> list[str]:
    """The files of a folder that tell YOLO's format: its description, names or labels."""
    if found := find_description(layout):
        return found
    stems = {os.path.splitext(name)[0] for name in layout.images()}
    return [
        name
        for name in layout.ending(".txt", ".names")
        if name[:-4] in stems or _is_label(name) or os.path.basename(name) == "obj.names"
    ]


def read_yolo(layout: Layout) -> tuple[list[str], dict[str, list[LabelledImage]]]:
    """Reads a dataset: names of the classes, and images by split.

    An image without a label file is background. A polygon counts as its box; with ``kpt_shape`` in
    data.yaml, keypoints are left out.

    Raises:
        DataError: a file is missing or broken; names file, line and cure.
    """
    described = read_description(layout)
    labels = {
        path: _label_file(path, layout.folder)
        for paths in described.splits.values()
        for path in paths
    }
    without = [path for path, label in labels.items() if not os.path.isfile(label)]
    for split, paths in described.splits.items():
        if set(paths) <= set(without):
            raise DataError(
                f"none of the {len(paths)} images of {layout.folder} ({split}) has a label file;"
                f" for {paths[0]} it would be {labels[paths[0]]}: put the labels there"
            )
    _check_labels_used(layout, labels, described.others)
    if without:
        warn(
            f"{len(without)} of the {len(labels)} images of {layout.folder} have no label file and"
            f" count as background, the first is {without[0]}: remove those that nobody labelled"
        )
    reader = _LabelReader(described)
    result = {
        split: [reader.image(path, labels[path]) for path in paths]
        for split, paths in described.splits.items()
    }
    if reader.num_polygons:
        tell(
            f"{reader.num_polygons} objects of {layout.folder} are polygons: their boxes are used."
        )
    return described.class_names, result


def _label_file(image: str, folder: str) -> str:
    """Path of an image's labels: in labels if the image is in images, else beside it."""
    beside = os.path.splitext(image)[0] + ".txt"
    # The folder itself may be in one called images
    inside = image.startswith(f"{folder}/")
    parts = list(PurePosixPath(os.path.relpath(beside, folder) if inside else beside).parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i].lower() == "images":
            parts[i] = "labels"
            break
    swapped = os.path.join(folder if inside else "", *parts)
    return beside if os.path.isfile(beside) and not os.path.isfile(swapped) else swapped


def _is_label(name: str) -> bool:
    return name.endswith(".txt") and "labels" in PurePosixPath(name).parts[:-1]


def _check_labels_used(layout: Layout, labels: dict[str, str], others: set[str]) -> None:
    """Checks that each label file is that of one image, be it in a split or not."""
    owners: dict[str, str] = {}
    for image, label in labels.items():
        if label in owners and owners[label] != image and os.path.isfile(label):
            raise DataError(
                f"the images {owners[label]} and {image} share the label file {label}: rename or"
                " remove one"
            )
        owners[label] = image
    folders = {os.path.dirname(label) for label in owners}
    known = (
        others | set(owners) | {_label_file(layout.path(n), layout.folder) for n in layout.images()}
    )
    for name in layout.ending(".txt"):
        path, base = layout.path(name), os.path.basename(name).lower()
        if path in known or base in NAME_FILES or base.startswith("readme"):
            continue
        if os.path.dirname(path) in folders or _is_label(name):
            raise DataError(
                f"the label file {path} has no image: add the image, or remove the file"
            )


class _LabelReader:
    """Reads label files, and counts polygons."""

    def __init__(self, described: YoloFiles) -> None:
        self._class_names = described.class_names
        self._num_keypoint_values = described.num_keypoint_values
        self.num_polygons = 0

    def image(self, path: str, label_file: str) -> LabelledImage:
        """Reads the labels of an image."""
        width, height = size = read_size(path)
        boxes = []
        lines = read_lines(label_file) if os.path.isfile(label_file) else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"line {number} of {label_file}"
            class_id, values = self._numbers(line.split(), where)
            x0, y0, x1, y1 = self._corners(values, where)
            box = (x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height)
            boxes.append(LabelledBox(where, box, class_id))
        return LabelledImage(path, size, boxes)

    def _numbers(self, words: list[str], where: str) -> tuple[int, list[float]]:
        try:
            first, *values = map(float, words)
        except ValueError:
            raise DataError(
                f"{where} is {' '.join(words)!r}: write class, x, y, width and height as numbers"
                " with spaces between them"
            ) from None
        if not all(map(math.isfinite, [first, *values])):
            raise DataError(f"{where} has a number that is not finite: mend or remove the line")
        count = len(self._class_names)
        if first != int(first) or not 0 <= first < count:
            raise DataError(
                f"{where} has the class {words[0]}, and there are {count} classes"
                f" ({', '.join(self._class_names)}), numbered from 0 to {count - 1}: mend the line,"
                " or add the class"
            )
        return int(first), values

    def _corners(self, values: list[float], where: str) -> tuple[float, float, float, float]:
        """The box of a line, in fractions of the image."""
        count = len(values) + 1
        if self._num_keypoint_values is not None:
            wanted = 5 + self._num_keypoint_values
            if count not in (5, wanted):
                raise DataError(
                    f"{where} has {count} values, and by the kpt_shape of data.yaml it should have"
                    f" {wanted}: mend the line, or the key"
                )
            values = values[:4]
        is_polygon = len(values) != 4
        if is_polygon and (count < _SHORTEST_POLYGON or count % 2 == 0):
            raise DataError(
                f"{where} has {count} values: write five (class, x, y, width and height), or a"
                " class and the corners of a polygon; keypoints need kpt_shape in data.yaml"
            )
        _check_range(values, where)
        if is_polygon:
            self.num_polygons += 1
            return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _check_range(values: Iterable[float], where: str) -> None:
    for value in values:
        if value < -_TOLERANCE:
            raise DataError(
                f"{where} has the number {value:g}, which is negative: write fractions of the image"
                " from 0 to 1"
            )
        if value > 1 + _TOLERANCE:
            raise DataError(
                f"{where} has the number {value:g}, which is above 1, as pixels or percent are:"
                " divide by the width or height of the image, or by 100"
            )
