"""Sets in Pascal VOC's format: a small one written here, and the real BCCD where it is present."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode

from onenet.data import load_voc_boxes
from onenet.data.bccd import _load_bccd
from onenet.utils.errors import DataError

CLASSES = ["RBC", "WBC"]


def voc_object(name: str, *box: object) -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


def write_voc(root: Path, **images: str) -> Path:
    """Writes a set of 40 x 30 images whose xml files hold the objects given."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{name}\n" for name in images))
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    for name, objects in images.items():
        xml = f"<annotation>{size}{objects}</annotation>"
        (root / f"Annotations/{name}.xml").write_text(xml)
        (root / f"JPEGImages/{name}.jpg").touch()
    return root


def test_boxes_begin_at_coordinate_zero_and_are_clipped(tmp_path):
    objects = voc_object("WBC", 1, 1, 40, 30) + voc_object("RBC", 0, 11, 55, 20)
    (record,) = load_voc_boxes(str(write_voc(tmp_path, a=objects)), "train", CLASSES)
    assert (record["height"], record["width"]) == (30, 40)
    assert record["file_name"] == str(tmp_path / "JPEGImages/a.jpg")
    whole, clipped = record["annotations"]
    assert whole == {"bbox": [0, 0, 40, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    assert clipped["bbox"] == [0, 10, 40, 20]


def test_boxes_without_area_are_left_out_and_told_once(tmp_path, caplog):
    good = voc_object("RBC", 2, 2, 9, 9)
    images = {
        "good": good,
        "point": good + voc_object("RBC", 5, 5, 5, 5),
        "line": voc_object("RBC", 5, 5, 9, 5) + voc_object("RBC", 50, 5, 60, 9),
        "empty": "",
    }
    with caplog.at_level(logging.WARNING):
        dataset = load_voc_boxes(str(write_voc(tmp_path, **images)), "train", CLASSES)
    assert [len(record["annotations"]) for record in dataset] == [1, 1, 0, 0]
    assert len({record["image_id"] for record in dataset}) == 4
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("left out 3 boxes") and message.endswith("point.xml, line.xml")


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (voc_object("T-cell", 1, 1, 9, 9), r"b\.xml .*'T-cell', which is none of RBC, WBC"),
        (voc_object("", 1, 1, 9, 9), r"b\.xml lacks the <name> of its <object>"),
        ("<object><name>RBC</name></object>", r"b\.xml lacks the <bndbox/xmin>"),
        (voc_object("RBC", 1, 1, "wide", 9), r"b\.xml .*<bndbox/xmax> 'wide'.*not a number"),
        (voc_object("RBC", 1, 1, "nan", 9), r"b\.xml .*<bndbox/xmax> 'nan'.*not a number"),
        (voc_object("RBC", 1, 1, "1e999", 9), r"b\.xml .*<bndbox/xmax> '1e999'.*not a number"),
        ("<object>", r"b\.xml cannot be read .mismatched tag"),
    ],
)
def test_broken_files_are_named(tmp_path, objects, message):
    write_voc(tmp_path, a=voc_object("RBC", 1, 1, 9, 9), b=objects)
    with pytest.raises(DataError, match=message):
        load_voc_boxes(str(tmp_path), "train", CLASSES)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("ImageSets/Main/train.txt", r"no list of images .*train\.txt"),
        ("Annotations/a.xml", r"a\.xml cannot be read"),
        ("JPEGImages/a.jpg", r"1 of the images .*a\.jpg"),
    ],
)
def test_missing_files_are_named(tmp_path, missing, message):
    write_voc(tmp_path, a=voc_object("RBC", 1, 1, 9, 9))
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=message):
        load_voc_boxes(str(tmp_path), "train", CLASSES)


def test_missing_bccd_is_named_with_its_source(tmp_path):
    with pytest.raises(DataError, match=r"BCCD.*Annotations.*Shenggan/BCCD_Dataset.*DETECTRON2_D"):
        _load_bccd(str(tmp_path / "BCCD"), "train")


def find_bccd() -> Path | None:
    shared = Path(__file__).parents[3] / "shared" / "datasets"
    roots = [Path(os.getenv("DETECTRON2_DATASETS", shared)), shared]
    return next((root / "BCCD" for root in roots if (root / "BCCD").is_dir()), None)


@pytest.mark.skipif(find_bccd() is None, reason="no BCCD in $DETECTRON2_DATASETS")
def test_real_bccd_counts():
    counts, num_images = Counter(), []
    for split in ("train", "val", "test"):
        dataset = _load_bccd(str(find_bccd()), split)
        num_images.append(len(dataset))
        for record in dataset:
            counts.update(annotation["category_id"] for annotation in record["annotations"])
    assert num_images == [205, 87, 72]
    assert counts == {0: 4155 - 2, 1: 372, 2: 361}  # two RBC boxes have no area


@pytest.mark.skipif(find_bccd() is None, reason="no BCCD in $DETECTRON2_DATASETS")
def test_real_bccd_converts_to_coco_for_the_evaluator():
    name = "bccd_test_conversion"
    DatasetCatalog.register(name, lambda: _load_bccd(str(find_bccd()), "test"))
    MetadataCatalog.get(name).thing_classes = MetadataCatalog.get("bccd_test").thing_classes
    try:
        content = convert_to_coco_dict(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert [category["name"] for category in content["categories"]] == ["RBC", "WBC", "Platelets"]
    assert min(annotation["area"] for annotation in content["annotations"]) > 0
