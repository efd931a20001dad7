"""Which images and classes a folder in YOLO's format has: data.yaml, obj.data, or neither."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ...utils.errors import ConfigError, DataError
from ...utils.files import read_yaml
from ..box_checks import warn
from .class_files import check_names, find_names
from .layout import Layout, by_split, is_image, read_lines, walk

__all__ = ["NAME_FILES", "YoloFiles", "find_description", "read_description"]

NAME_FILES = ("classes.txt", "obj.names", "classes.names")
_SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class YoloFiles:
    """What a folder's description says.

    Attributes:
        class_names: in the order of their numbers.
        splits: paths of the images.
        num_keypoint_values: values of an object after its box; None if there are no keypoints.
        others: paths of text files that are no labels.
    """

    class_names: list[str]
    splits: dict[str, list[str]]
    num_keypoint_values: int | None
    others: set[str]


def find_description(layout: Layout) -> list[str]:
    """Names of the files that describe the folder: data.yaml and the like, or obj.data."""
    found = [
        name
        for name in layout.ending(".yaml", ".yml")
        if re.search(r"^(train|names)\s*:", layout.starts(name), re.MULTILINE)
    ] or [name for name in layout.files if os.path.basename(name) == "obj.data"]
    # Those deeper in the folder may be of something else
    return [name for name in found if name.count("/") == min(n.count("/") for n in found)]


def read_description(layout: Layout) -> YoloFiles:
    """Reads data.yaml or obj.data; without them a file of names, and splits named by folders.

    Raises:
        DataError: a file is missing or broken; names file, key or line, and cure.
    """
    found = find_description(layout)
    if len(found) > 1:
        raise DataError(f"{layout.folder} is described by {' and '.join(found)}: keep one of them")
    if not found:
        class_names, files = find_names(layout, NAME_FILES)
        if not class_names:
            raise DataError(
                f"{layout.folder} has labels in YOLO's format, and no file with the names of their"
                " classes: add classes.txt with one name a line, class 0 first, or data.yaml"
            )
        images = by_split(layout.images(), layout.folder)
        if not images:
            raise DataError(
                f"{layout.folder} has labels in YOLO's format, and no images: put them into it, in"
                " a folder images beside labels"
            )
        splits = {split: [layout.path(name) for name in names] for split, names in images.items()}
        return YoloFiles(class_names, splits, None, {layout.path(name) for name in files})
    path = layout.path(found[0])
    if path.endswith("obj.data"):
        content = _read_obj_data(path)
    else:
        content = _read_data_yaml(path)
    bases = _bases(path, content, layout)
    splits, others = {}, {path}
    for key, split in _SPLIT_KEYS.items():
        if content.get(key) and split not in splits:
            images, lists = _entries(path, key, content[key], bases)
            others |= lists
            if images:
                splits[split] = images
    if "train" not in splits:
        raise DataError(f"{path} names no images under 'train': name their folder there")
    names, files = _class_names(path, content, layout)
    return YoloFiles(names, splits, _keypoints(path, content), others | files)


def _read_obj_data(path: str) -> dict[str, Any]:
    content = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        key, sign, value = line.partition("=")
        if not sign:
            raise DataError(f"line {number} of {path} is {line!r}: write key = value")
        content[key.strip()] = value.strip()
    return content


def _read_data_yaml(path: str) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except ConfigError as error:
        raise DataError(str(error)) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} has no keys: YOLO's format needs 'train', 'val' and 'names'")
    return content


def _class_names(path: str, content: dict[str, Any], layout: Layout) -> tuple[list[str], set[str]]:
    """The names of the classes, and the files that they are from."""
    if path.endswith("obj.data"):
        names, files = find_names(layout, NAME_FILES)
        count = content.get("classes", str(len(names)))
        key = "classes"
    else:
        names, files = _names_of_yaml(path, content.get("names")), []
        count, key = content.get("nc", len(names)), "nc"
    if not names:
        raise DataError(f"{path} has no names of classes: add them, the first for class 0")
    if str(count) != str(len(names)):
        raise DataError(
            f"{path} has {len(names)} names of classes ({', '.join(names)}), but the '{key}'"
            f" {count!r}: set it to {len(names)}, or mend the names"
        )
    return names, {layout.path(name) for name in files}


def _names_of_yaml(path: str, names: Any) -> list[str]:
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(
                f"{path} has 'names' with the numbers {reprlib.repr(list(names))}: number the"
                f" classes from 0 to {len(names) - 1}"
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(
            f"{path} has the 'names' {reprlib.repr(names)}: give a list of the classes' names, or"
            " number: name"
        )
    return check_names((f"'names' number {i} of {path}", name) for i, name in enumerate(names))


def _keypoints(path: str, content: dict[str, Any]) -> int | None:
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)):
        raise DataError(
            f"{path} has the 'kpt_shape' {reprlib.repr(shape)}: give the number of keypoints and of"
            " the values of each, as [17, 3]"
        )
    return shape[0] * shape[1]


def _bases(path: str, content: dict[str, Any], layout: Layout) -> list[str]:
    """Folders that paths may be relative to."""
    own = os.path.dirname(path)
    root = os.path.join(own, str(content.get("path") or ""))
    return list(dict.fromkeys(os.path.normpath(p) for p in (root, own, layout.folder)))


def _entries(path: str, key: str, value: Any, bases: list[str]) -> tuple[list[str], set[str]]:
    """Images of a split, and the lists that name them."""
    images, lists = [], set()
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str):
            raise DataError(f"{path} has the '{key}' {reprlib.repr(value)}: give a folder's path")
        found = _resolve(entry, bases, any_part=entry.startswith("/") or entry.endswith(".txt"))
        if found is None:
            if key == "train":
                raise DataError(
                    f"{path} has the '{key}' {entry}, which is not in {bases[-1]}: write the"
                    " folder's path relative to that"
                )
            warn(f"{path} has the '{key}' {entry}, which does not exist: there is no such split.")
        elif os.path.isdir(found):
            names = [os.path.join(found, name) for name in sorted(walk(found)) if is_image(name)]
            if not names:
                raise DataError(
                    f"{path} has the '{key}' {entry}, and {found} has no images: add some, or"
                    " remove the key"
                )
            images += names
        else:
            lists.add(found)
            images += _listed(found, bases)
    return images, lists


def _listed(list_file: str, bases: list[str]) -> list[str]:
    images = []
    for number, line in enumerate(read_lines(list_file), start=1):
        if not (name := line.strip()):
            continue
        image = _resolve(name, [os.path.dirname(list_file), *bases], any_part=True)
        if image is None or not os.path.isfile(image):
            raise DataError(
                f"line {number} of {list_file} names the image {name}, which is not in"
                f" {bases[-1]}: add it, or remove the line"
            )
        images.append(image)
    if not images:
        raise DataError(f"{list_file} names no images: write their paths into it, one a line")
    return images


def _resolve(name: str, bases: Sequence[str], any_part: bool) -> str | None:
    """Path of what a description names, or None.

    Without leading dots (an export of Roboflow names ../train/images, which is train/images) it is
    looked for in the given folders, then as it stands, and with `any_part` also without its first
    folders, as a dataset may have moved.
    """
    name = name.replace("\\", "/")
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..", ".")]
    candidates = [] if name.startswith("/") else [os.path.join(b, *parts) for b in bases]
    candidates += [os.path.join(base, name) for base in bases]
    if any_part:
        candidates += [os.path.join(b, *parts[i:]) for i in range(len(parts)) for b in bases]
    return next((os.path.normpath(c) for c in candidates if os.path.exists(c)), None)
