"""A small dataset, and functions that write it in every layout that is recognised."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

CLASSES = ["cat", "dog", "owl"]

Objects = list[tuple[int, int, int, int, int]]  # class, x, y, width, height in whole pixels
Split = Mapping[str, Objects]  # by the names of the images


@dataclass(frozen=True)
class Set:
    """Images and objects by split; "" if the set has no splits."""

    splits: Mapping[str, Split]

    def size(self, name: str) -> tuple[int, int]:
        """Width and height of an image, odd so that fractions do not come out even."""
        return (97, 61) if name < "c" else (1283, 711)


WHOLE: Split = {
    "d.png": [(2, 700, 3, 501, 333), (0, 0, 0, 1283, 711)],
    "a.png": [(0, 3, 5, 20, 31), (1, 13, 7, 77, 53), (0, 90, 0, 7, 9)],
    "b.png": [],
    "c.png": [(1, 1, 1, 2, 3)],
    "e.png": [(1, 640, 320, 17, 19)],
}
UNSPLIT = Set({"": WHOLE})
SPLIT = Set(
    {
        "train": {name: WHOLE[name] for name in ("d.png", "a.png", "b.png")},
        "valid": {"c.png": WHOLE["c.png"]},
        "test": {"e.png": WHOLE["e.png"]},
    }
)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_images(folder: Path, data: Set, split: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in data.splits[split]:
        Image.new("RGB", data.size(name)).save(folder / name)


def coco(data: Set, split: str, prefix: str = "", first_id: int = 1) -> dict:
    """Content of a json; images and categories are not in order."""
    images, annotations = [], []
    for i, (name, objects) in enumerate(data.splits[split].items()):
        width, height = data.size(name)
        image = {"id": 7 * i, "file_name": prefix + name, "width": width, "height": height}
        images.append(image)
        for c, *box in objects:
            entry = {"id": len(annotations), "image_id": 7 * i, "category_id": c + first_id}
            annotations.append({**entry, "bbox": box})
    categories = [{"id": i + first_id, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


def write_labels(folder: Path, data: Set, split: str) -> None:
    """YOLO's text files, with six decimals; none for the image without objects."""
    for name, objects in data.splits[split].items():
        width, height = data.size(name)
        lines = [
            f"{c} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f}"
            f" {h / height:.6f}\n"
            for c, x, y, w, h in objects
        ]
        if lines:
            write_text(folder / f"{Path(name).stem}.txt", "".join(lines))


def write_xmls(folder: Path, data: Set, split: str) -> None:
    for name, objects in data.splits[split].items():
        width, height = data.size(name)
        nodes = "".join(
            f"<object><name>{CLASSES[c]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>\n"
            for c, x, y, w, h in objects
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{name}</filename>{size}\n{nodes}</annotation>\n"
        write_text(folder / f"{Path(name).stem}.xml", xml)


def write_names(path: Path) -> None:
    write_text(path, "".join(f"{name}\n" for name in CLASSES))


# COCO


def coco_json_beside_images_folder(root: Path, data: Set) -> None:
    for split in data.splits:
        write_images(root / "images", data, split)
        write_text(root / f"{split or 'result'}.json", json.dumps(coco(data, split)))


def coco_roboflow(root: Path, data: Set) -> None:
    for split in data.splits:
        write_images(root / split, data, split)
        content = coco(data, split)
        for category in content["categories"]:
            category["supercategory"] = "animals"
        content["categories"].append({"id": 0, "name": "animals", "supercategory": "none"})
        write_text(root / split / "_annotations.coco.json", json.dumps(content))
    write_text(root / "README.dataset.txt", "# animals\n")


def coco_cvat(root: Path, data: Set) -> None:
    for split in data.splits:
        subset = split or "default"
        write_images(root / "images" / subset, data, split)
        path = root / "annotations" / f"instances_{subset}.json"
        write_text(path, json.dumps(coco(data, split)))


def coco_label_studio(root: Path, data: Set) -> None:
    write_images(root / "images", data, "")
    write_text(root / "result.json", json.dumps(coco(data, "", "images/", 0)))


def coco_official(root: Path, data: Set) -> None:
    for split in data.splits:
        year = f"{split.replace('valid', 'val')}2017"
        write_images(root / year, data, split)
        content = json.dumps(coco(data, split))
        write_text(root / "annotations" / f"instances_{year}.json", content)
        write_text(root / "annotations" / f"captions_{year}.json", content)


# YOLO


def yolo_roboflow(root: Path, data: Set) -> None:
    for split in data.splits:
        write_images(root / split / "images", data, split)
        write_labels(root / split / "labels", data, split)
    keys = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 3\n"
    write_text(root / "data.yaml", f"{keys}names: {CLASSES}\n\nroboflow:\n  version: 1\n")
    write_text(root / "README.roboflow.txt", "animals\n")


def yolo_ultralytics(root: Path, data: Set) -> None:
    """Images in images/<split>, and a yaml made elsewhere."""
    keys = ["path: /elsewhere/animals"]
    for split in data.splits:
        write_images(root / "images" / split, data, split)
        write_labels(root / "labels" / split, data, split)
        keys.append(f"{split.replace('valid', 'val') or 'train'}: images/{split}")
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    write_text(root / "data.yaml", "\n".join([*keys, "names:", names]))


def yolo_cvat_ultralytics(root: Path, data: Set) -> None:
    yolo_ultralytics(root, data)
    keys = []
    for split in data.splits:
        images = [f"data/images/{split}/{name}\n" for name in data.splits[split]]
        write_text(root / f"{split or 'all'}.txt", "".join(images))
        keys.append(f"{split.replace('valid', 'val') or 'train'}: {split or 'all'}.txt\n")
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    write_text(root / "data.yaml", f"path: .\n{''.join(keys)}names:\n{names}")


def yolo_cvat(root: Path, data: Set) -> None:
    """CVAT's YOLO 1.1."""
    lines = ["classes = 3"]
    for split in data.splits:
        subset = split or "train"
        write_images(root / f"obj_{subset}_data", data, split)
        write_labels(root / f"obj_{subset}_data", data, split)
        images = [f"data/obj_{subset}_data/{name}\n" for name in data.splits[split]]
        write_text(root / f"{subset}.txt", "".join(images))
        lines.append(f"{subset} = data/{subset}.txt")
    lines += ["names = data/obj.names", "backup = backup/"]
    write_text(root / "obj.data", "\n".join(lines))
    write_names(root / "obj.names")


def yolo_label_studio(root: Path, data: Set) -> None:
    for split in data.splits:
        write_images(root / "images" / split, data, split)
        write_labels(root / "labels" / split, data, split)
    write_names(root / "classes.txt")
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    write_text(root / "notes.json", json.dumps({"categories": categories, "info": {}}))


def yolo_labelimg(root: Path, data: Set) -> None:
    for split in data.splits:
        write_images(root / split, data, split)
        write_labels(root / split, data, split)
        write_names(root / split / "classes.txt")


# Pascal VOC


def voc_official(root: Path, data: Set) -> None:
    for split in data.splits:
        write_images(root / "JPEGImages", data, split)
        write_xmls(root / "Annotations", data, split)
        images = "".join(f"{Path(name).stem}\n" for name in data.splits[split])
        path = root / "ImageSets" / "Main" / f"{split.replace('valid', 'val') or 'trainval'}.txt"
        write_text(path, images)
        write_text(path.with_name(f"cat_{path.name}"), images.replace("\n", " -1\n"))


def voc_cvat(root: Path, data: Set) -> None:
    voc_official(root, data)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:1,2,3::"]
    write_text(root / "labelmap.txt", "\n".join([*lines, "dog:3,4,5::", "owl:6,7,8::", ""]))
    lists = root / "ImageSets" / "Main"
    if "" in data.splits:
        (lists / "trainval.txt").rename(lists / "default.txt")


def voc_without_lists(root: Path, data: Set) -> None:
    for split in data.splits:
        write_images(root / "images" / split, data, split)
        write_xmls(root / "annotations" / split, data, split)


def voc_side_by_side(root: Path, data: Set) -> None:
    """Of Roboflow and LabelImg."""
    for split in data.splits:
        write_images(root / split, data, split)
        write_xmls(root / split, data, split)


WRITERS: list[Callable[[Path, Set], None]] = [
    *(coco_json_beside_images_folder, coco_roboflow, coco_cvat, coco_official),
    *(yolo_roboflow, yolo_ultralytics, yolo_cvat_ultralytics, yolo_cvat),
    *(yolo_label_studio, yolo_labelimg),
    *(voc_official, voc_cvat, voc_without_lists, voc_side_by_side),
]
WITHOUT_SPLITS = [
    *(coco_json_beside_images_folder, coco_cvat, coco_label_studio),
    *(yolo_ultralytics, yolo_cvat_ultralytics, yolo_cvat, yolo_label_studio, yolo_labelimg),
    *(voc_official, voc_cvat, voc_without_lists, voc_side_by_side),
]


def records_of(names: Mapping[str, str]) -> dict[str, list[dict]]:
    """Records by split, with the names of the images in place of their paths."""
    result = {}
    for split, name in names.items():
        assert MetadataCatalog.get(name).evaluator_type == "coco"
        records = DatasetCatalog.get(name)
        assert all(os.path.isfile(record["file_name"]) for record in records)
        result[split] = [{**r, "file_name": os.path.basename(r["file_name"])} for r in records]
    return result
