"""Registration of detection datasets in COCO format, with checks.

Detectron2 and pycocotools do not check such files, so mistakes surface in the middle of a run.
These checks report them in one sentence at the start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import reprlib
from collections.abc import Iterable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from iopath.common.file_io import get_cache_dir

from ..utils.errors import DataError
from ..utils.files import read_json, write_whole

__all__ = [
    "LARGEST",
    "check_images_exist",
    "check_same_classes",
    "is_box",
    "is_number",
    "json_class_names",
    "register_coco_json",
]

logger = logging.getLogger(__name__)

LARGEST = 1e9  # pixels; areas stay finite


def _read(json_file: str) -> dict[str, Any]:
    """Reads the file and checks its three lists."""
    if not os.path.isfile(json_file):
        raise DataError(f"there is no annotation file {json_file}: check the path in the config")
    content = read_json(json_file)
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
    return content


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


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of bounded size, and not a bool."""
    return type(value) in (int, float) and abs(value) <= LARGEST


def is_box(box: Any) -> bool:
    """Whether a value is a list of four numbers; see :func:`is_number`."""
    return isinstance(box, list) and len(box) == 4 and all(is_number(value) for value in box)


def _check_images(json_file: str, images: list[dict[str, Any]]) -> None:
    for image in images:
        name = f"image {image['id']} in {json_file}"
        if not isinstance(image["file_name"], str):
            raise DataError(f"{name} has the file_name {image['file_name']!r}: it must be a text")
        for key in ("width", "height"):
            if not is_number(image[key]) or image[key] <= 0:
                raise DataError(
                    f"{name} has the {key} {image[key]!r}: it must be a number above 0, in pixels"
                )


def _is_outside(box: list[float], width: float, height: float) -> bool:
    """Whether a box (x, y, width, height) lies wholly outside the image."""
    x, y, box_width, box_height = box
    return x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0


def _check_annotations(
    json_file: str,
    annotations: list[dict[str, Any]],
    images: list[dict[str, Any]],
    category_ids: set[int],
) -> None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    references = {"image_id": ("images", sizes), "category_id": ("categories", category_ids)}
    num_flat = num_outside = 0
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
        is_flat = min(box[2:]) == 0
        num_flat += is_flat
        num_outside += not is_flat and _is_outside(box, *sizes[annotation["image_id"]])
    for count, what in ((num_flat, "have no area"), (num_outside, "lie outside their image")):
        if count:
            logger.warning(
                f"{count} boxes in {json_file} {what}: training leaves them out, evaluation counts"
                " them as objects"
            )


def check_images_exist(source: str, image_root: str, file_names: Iterable[str]) -> None:
    """Checks that a dataset's images exist; lists each folder only once.

    Args:
        source: the annotation file, for the message.
        image_root: the folder that the names are relative to.
        file_names: of the images; may include folders.

    Raises:
        DataError: the folder or an image is missing.
    """
    if not os.path.isdir(image_root):
        raise DataError(
            f"there is no image folder {image_root} for {source}: check the path of the images"
        )
    listings: dict[str, set[str]] = {}
    missing = []
    for file_name in file_names:
        folder, base = os.path.split(os.path.join(image_root, file_name))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder]:
            missing.append(file_name)
    if missing:
        raise DataError(
            f"{len(missing)} of the images that {source} names are not in {image_root}, the first "
            f"is {missing[0]}: check that the two belong together"
        )


def _completed(json_file: str, content: dict[str, Any]) -> str:
    """Path of the file for Detectron2 and COCOeval: the original, or a completed copy.

    COCOeval needs area and iscrowd, and takes the annotation id 0 for "no match". Detectron2 drops
    boxes with an empty polygon, which labelling tools write, and fails on broken segmentations and
    keypoints; none of them is needed for boxes.
    """
    annotations = content["annotations"]
    mended = []
    for annotation in annotations:
        kept = {k: v for k, v in annotation.items() if k not in ("segmentation", "keypoints")}
        if not is_number(kept.get("area")):
            kept["area"] = kept["bbox"][2] * kept["bbox"][3]
        if kept.get("iscrowd") not in (0, 1):
            kept["iscrowd"] = 0
        mended.append(kept)
    if any(annotation["id"] < 1 for annotation in annotations):
        mended = [{**annotation, "id": i} for i, annotation in enumerate(mended, start=1)]
    if mended == annotations:
        return json_file
    text = json.dumps({**content, "annotations": mended}).encode()
    # Named by its content, so a copy is never outdated and all workers use the same
    copy = os.path.join(get_cache_dir(), f"onenet_{hashlib.sha256(text).hexdigest()[:16]}.json")
    logger.info(
        f"{json_file} has polygons or keypoints, lacks area or iscrowd, or has an annotation id of"
        f" 0: its completed copy {copy} is used"
    )
    own = f"{copy}.{os.getpid()}"  # all workers may write at the same time
    try:
        write_whole(own, text)
        os.replace(own, copy)
    except OSError as error:
        raise DataError(
            f"{copy}, the completed copy of {json_file}, cannot be written ({error.strerror}); make"
            " room, or name another folder in the environment variable FVCORE_CACHE."
        ) from error
    return copy


def register_coco_json(json_file: str, image_root: str) -> str:
    """Checks a detection dataset in COCO format and registers it with Detectron2.

    Registering a file again reads it again, possibly with another image folder.

    Args:
        json_file: annotations in COCO format.
        image_root: the folder that the images' ``file_name`` is relative to.

    Returns:
        The name of the dataset, which is `json_file`.

    Raises:
        DataError: the file cannot be used; the message names the file, the entry and the fix.
    """
    content = _read(json_file)
    category_ids = _unique_ids(json_file, content["categories"], "category", ["name"])
    images = content["images"]
    _unique_ids(json_file, images, "image", ["file_name", "width", "height"])
    _check_images(json_file, images)
    keys = ["image_id", "category_id", "bbox"]
    _unique_ids(json_file, content["annotations"], "annotation", keys)
    _check_annotations(json_file, content["annotations"], images, category_ids)
    check_images_exist(json_file, image_root, [image["file_name"] for image in images])

    if json_file in DatasetCatalog:
        DatasetCatalog.remove(json_file)
        MetadataCatalog.remove(json_file)
    completed = _completed(json_file, content)
    DatasetCatalog.register(json_file, lambda: load_coco_json(completed, image_root, json_file))
    names = {category["id"]: category["name"] for category in content["categories"]}
    # In the order of load_coco_json, which sets them only when the dataset is loaded
    ids = sorted(category_ids)
    MetadataCatalog.get(json_file).set(
        thing_classes=[names[category_id] for category_id in ids],
        thing_dataset_id_to_contiguous_id={category_id: i for i, category_id in enumerate(ids)},
        evaluator_type="coco",
        json_file=completed,
        image_root=image_root,
    )
    return json_file


def json_class_names(json_file: str) -> list[str]:
    """Class names of a dataset in COCO format, in the order of the classes (of the ids).

    Raises:
        DataError: the file cannot be used.
    """
    categories = _read(json_file)["categories"]
    _unique_ids(json_file, categories, "category", ["name"])
    return [str(category["name"]) for category in sorted(categories, key=lambda c: c["id"])]


def check_same_classes(train_name: str, test_name: str) -> None:
    """Checks that two registered datasets have the same classes in the same order.

    Args:
        train_name: name of the dataset for training.
        test_name: name of the dataset for testing.

    Raises:
        DataError: names or order differ.
    """
    train, test = (MetadataCatalog.get(name).thing_classes for name in (train_name, test_name))
    if train != test:
        raise DataError(
            f"{train_name} and {test_name} differ in their classes ({train} and {test}): the"
            " 'categories' for training and for testing must be the same"
        )
