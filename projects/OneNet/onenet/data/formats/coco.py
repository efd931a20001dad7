"""Reading of folders with annotations in COCO's format."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from ...utils.errors import DataError
from ...utils.files import read_json
from ..box_checks import tell
from ..coco_checks import check_content
from ..image_names import check_images_exist
from .layout import SPLITS, Layout, split_of
from .records import LabelledBox, LabelledImage, fitted

__all__ = ["find_coco", "read_coco"]

_KEYS = re.compile(r'"(images|annotations)"\s*:')
_PROBES = 20  # images by which the folder of images is found


def find_coco(layout: Layout) -> list[str]:
    """The json files of a folder in COCO's format.

    Of several, those named instances_... are taken, as COCO's others hold captions and keypoints.
    """
    found = [name for name in layout.ending(".json") if _KEYS.search(layout.starts(name))]
    instances = [name for name in found if os.path.basename(name).startswith("instances")]
    return instances or found


def read_coco(layout: Layout) -> tuple[list[str], dict[str, list[LabelledImage]]]:
    """Reads a dataset: names of the classes in the order of their ids, and images by split.

    Raises:
        DataError: a file is missing or broken; names file, entry and cure.
    """
    files = _files_by_split(layout)
    contents = {split: read_json(layout.path(name)) for split, name in files.items()}
    _drop_group(layout, list(contents.values()))
    class_names: list[str] = []
    result = {}
    for split, name in files.items():
        content = contents[split]
        check_content(layout.path(name), content)
        categories = sorted(content["categories"], key=lambda c: c["id"])
        names = [category["name"] for category in categories]
        class_names = class_names or names
        if names != class_names:
            raise DataError(
                f"{layout.path(next(iter(files.values())))} and {layout.path(name)} differ in their"
                f" classes ({', '.join(class_names)} and {', '.join(names)}): the 'categories' must"
                " be the same, in the same order of their ids"
            )
        result[split] = _images(layout, name, split, content, [c["id"] for c in categories])
    return class_names, result


def _files_by_split(layout: Layout) -> dict[str, str]:
    files: dict[str, str] = {}
    for name in find_coco(layout):
        words = re.split(r"[^a-z]+", os.path.splitext(os.path.basename(name))[0].lower())
        named = [SPLITS[word] for word in words if word in SPLITS]
        split = named[0] if named else split_of(name)
        if split in files:
            raise DataError(
                f"{layout.folder} has two annotation files for one split, {files[split]} and"
                f" {name}: keep one of them, or name them after train, val and test"
            )
        files[split] = name
    if "" in files and len(files) > 1:
        if "train" in files:
            raise DataError(
                f"{layout.folder} has {files['train']} for training, and {files['']} whose name"
                " tells no split: remove one, or name it after val or test"
            )
    if "" in files:
        files["train"] = files.pop("")
    return files


def _drop_group(layout: Layout, contents: Sequence[Any]) -> None:
    """Drops Roboflow's category 0, which only groups all others, in all splits or in none."""
    groups = [_group(content) for content in contents]
    if None in groups:
        return
    for content, group in zip(contents, groups, strict=True):
        content["categories"] = [c for c in content["categories"] if c is not group]
    tell(
        f"The category 0 ({groups[0]['name']}) of {layout.folder} is left out: it has no objects,"
        " and is the supercategory of all others."
    )


def _group(content: Any) -> dict[str, Any] | None:
    """The category 0 without annotations whose name is the supercategory of all others."""
    try:
        (group,) = (c for c in content["categories"] if c["id"] == 0)
        others = [c for c in content["categories"] if c is not group]
        names = {c["supercategory"] for c in others}
        used = any(annotation["category_id"] == 0 for annotation in content["annotations"])
        return group if names == {group["name"]} and not used else None
    except (KeyError, TypeError, ValueError):  # check_content tells what is wrong
        return None


def _images(
    layout: Layout, json_name: str, split: str, content: dict[str, Any], category_ids: list[int]
) -> list[LabelledImage]:
    json_file = layout.path(json_name)
    names = [image["file_name"] for image in content["images"]]
    root = _image_root(layout, json_name, split, names)
    check_images_exist(json_file, root, names)
    numbers = {category_id: i for i, category_id in enumerate(category_ids)}
    boxes: dict[int, list[LabelledBox]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        boxes[annotation["image_id"]].append(
            LabelledBox(
                f"annotation {annotation['id']} in {json_file}",
                tuple(annotation["bbox"]),
                numbers[annotation["category_id"]],
                annotation.get("iscrowd") == 1,
            )
        )
    images = []
    for image in content["images"]:
        path, size = os.path.join(root, image["file_name"]), (image["width"], image["height"])
        annotated = LabelledImage(path, size, boxes[image["id"]])
        images.append(fitted(annotated, f"image {image['id']} in {json_file}"))
    return images


def _image_root(layout: Layout, json_name: str, split: str, names: Sequence[str]) -> str:
    """The folder that has the most of the first images; the first of several."""
    beside = os.path.dirname(json_name)
    above = os.path.dirname(beside)
    subset = os.path.splitext(os.path.basename(json_name))[0].removeprefix("instances_")
    words = [subset, *(word for word, meant in SPLITS.items() if meant == split), "default"]
    folders = [beside, above, ""]
    candidates = [
        *(os.path.join(f, "images", word) for f in folders for word in words),
        *(os.path.join(f, word, "images") for f in folders for word in words),
        *(os.path.join(f, word) for f in folders for word in words),
        *(os.path.join(f, "images") for f in folders),
        *folders,
    ]
    paths = [os.path.normpath(layout.path(name)) for name in candidates]

    def found(path: str) -> int:
        return sum(os.path.isfile(os.path.join(path, name)) for name in names[:_PROBES])

    best = max(paths, key=found)
    return best if found(best) else os.path.normpath(layout.path(beside))
