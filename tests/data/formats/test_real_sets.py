"""Real sets: the same photos in two formats give the same records, where their sources agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from written_sets import records_of, write_text

from onenet.data import register_folder


def real_set(real_data: Path, name: str) -> Path:
    if not (real_data / name / "annotations").is_dir():
        pytest.skip(f"no {name} under {real_data}")
    return real_data / name


def linked_coco(folder: Path, to: Path, keep: Callable[[dict], bool]) -> dict[str, list[dict]]:
    """Records of the images of a set's json files that are to be kept."""
    to.mkdir()
    (to / "images").symlink_to(folder / "images")
    for split in ("train", "val"):
        content = json.loads((folder / f"{split}.json").read_text())
        images = [image for image in content["images"] if keep(image)]
        ids = {image["id"] for image in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        content.update(images=images, annotations=annotations)
        (to / f"{split}.json").write_text(json.dumps(content))
    return records_of(register_folder(str(to)))


def test_kangaroo(real_data, tmp_path):
    """Its json has xmin and ymin as they are in the xml, where VOC counts from 1.

    The xml of photos that were made smaller are still those of the original size.
    """
    folder = real_set(real_data, "kangaroo")

    def has_its_size(image: dict) -> bool:
        xml = (folder / "annotations" / image["file_name"]).with_suffix(".xml").read_text()
        return f"<width>{image['width']}</width>" in xml

    coco = linked_coco(folder, tmp_path / "coco", has_its_size)
    voc = tmp_path / "voc"
    for split, records in coco.items():
        stems = [Path(record["file_name"]).stem for record in records]
        write_text(voc / f"ImageSets/Main/{split}.txt", "\n".join(stems))
    (voc / "JPEGImages").symlink_to(folder / "images")
    (voc / "Annotations").symlink_to(folder / "annotations")
    from_xml = records_of(register_folder(str(voc)))
    assert {split: len(records) for split, records in coco.items()} == {"train": 78, "val": 17}
    for split, records in from_xml.items():
        for record in records:
            for annotation in record["annotations"]:
                x, y, width, height = annotation["bbox"]
                annotation["bbox"] = [x + 1, y + 1, width - 1, height - 1]
        assert records == coco[split]


def test_coco_people(real_data, tmp_path):
    """Its labels do not flag crowd regions, and have one box that is narrower than a pixel."""
    folder = real_set(real_data, "coco_people")
    coco = linked_coco(folder, tmp_path / "coco", lambda _: True)
    yolo = tmp_path / "yolo"
    for split, records in coco.items():
        for record in records:
            name = record["file_name"]
            label = Path(name).with_suffix(".txt")
            for kind, file, source in (
                ("images", name, "images"),
                ("labels", label, "annotations"),
            ):
                link = yolo / split / kind / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(folder / source / file)
    (yolo / "classes.txt").write_text("person\n")
    from_text = records_of(register_folder(str(yolo)))
    assert {split: len(records) for split, records in coco.items()} == {"train": 637, "val": 159}
    for split, records in from_text.items():
        for record, wanted in zip(records, coco[split], strict=True):
            record["annotations"] = [a for a in record["annotations"] if a["bbox"][2] >= 1]
            for annotation, other in zip(record["annotations"], wanted["annotations"], strict=True):
                annotation["iscrowd"] = other["iscrowd"]
                # Halves are rounded up or down
                assert annotation["bbox"] == pytest.approx(other["bbox"], abs=0.0101)
                annotation["bbox"] = other["bbox"]
        assert records == coco[split]


def test_bccd_is_recognised(real_data):
    if not (real_data / "BCCD").is_dir():
        pytest.skip(f"no BCCD under {real_data}")
    records = records_of(register_folder(str(real_data / "BCCD")))
    assert {s: len(r) for s, r in records.items()} == {"train": 205, "val": 87, "test": 72}
    counts = [sum(len(r["annotations"]) for r in of_split) for of_split in records.values()]
    assert sum(counts) == 4155 + 372 + 361 - 2  # two boxes have no area
