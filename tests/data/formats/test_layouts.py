"""Every layout of every format is recognised and gives the same records."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from written_sets import (
    CLASSES,
    SPLIT,
    UNSPLIT,
    WHOLE,
    WITHOUT_SPLITS,
    WRITERS,
    Set,
    Split,
    coco_json_beside_images_folder,
    coco_roboflow,
    records_of,
    voc_official,
    voc_side_by_side,
    write_images,
    write_labels,
    yolo_label_studio,
    yolo_labelimg,
    yolo_roboflow,
)

from onenet.data import register_folder
from onenet.utils.errors import ConfigError, DataError


def expected(data: Set, names: list[str]) -> list[dict]:
    """Records of these images of the small set."""
    return [
        {
            "file_name": name,
            "image_id": number,
            "width": data.size(name)[0],
            "height": data.size(name)[1],
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": c, "iscrowd": 0}
                for c, *box in WHOLE[name]
            ],
        }
        for number, name in enumerate(names, start=1)
    ]


@pytest.mark.parametrize("write", WRITERS)
def test_layouts_with_splits(tmp_path, write):
    write(tmp_path, SPLIT)
    names = register_folder(str(tmp_path))
    format = write.__name__.split("_")[0]
    assert names == {s: f"{tmp_path} ({format}, {s})" for s in ("train", "val", "test")}
    assert all(MetadataCatalog.get(name).thing_classes == CLASSES for name in names.values())
    assert records_of(names) == {
        "train": expected(SPLIT, ["a.png", "b.png", "d.png"]),
        "val": expected(SPLIT, ["c.png"]),
        "test": expected(SPLIT, ["e.png"]),
    }


@pytest.mark.parametrize("write", WRITERS)
def test_relative_paths(tmp_path, write, monkeypatch):
    write(tmp_path / "images" / "set", SPLIT)
    wanted = records_of(register_folder(str(tmp_path / "images" / "set")))
    for folder, given in ((".", "images/set/"), ("images/set", ".")):
        monkeypatch.chdir(tmp_path / folder)
        names = register_folder(given)
        assert names["val"].startswith(f"{given.rstrip('/')} (")
        assert records_of(names) == wanted


@pytest.mark.parametrize("write", WITHOUT_SPLITS)
def test_layouts_without_splits_hold_the_same_images_back(tmp_path, write, caplog):
    write(tmp_path, UNSPLIT)
    with caplog.at_level(logging.INFO):
        names = register_folder(str(tmp_path), val_share=0.4)
    format = write.__name__.split("_")[0]
    assert names == {s: f"{tmp_path} ({format}, {s} 0.4)" for s in ("train", "val")}
    assert records_of(names) == {
        "train": expected(UNSPLIT, ["a.png", "d.png", "e.png"]),
        "val": expected(UNSPLIT, ["b.png", "c.png"]),
    }
    (line,) = [m for m in caplog.messages if "is read as" in m]
    assert "3 classes (cat, dog, owl); train 3 images with 6 objects, val 2 images with 1" in line
    assert line.endswith("; val is held back from train (DATASETS.VAL_SHARE 0.4).")


@pytest.mark.parametrize("write", [coco_roboflow, yolo_labelimg, voc_side_by_side])
def test_an_insisted_format_without_validation(tmp_path, write):
    data = Set({"train": WHOLE})
    write(tmp_path, data)
    names = register_folder(f"{tmp_path}/", write.__name__.split("_")[0], 0)
    assert list(names) == ["train"]
    assert records_of(names)["train"] == expected(data, sorted(WHOLE))


def test_held_back_images_hardly_change_with_the_set(tmp_path):
    images = {f"{i:03}.png": [(0, 1, 1, 9, 9)] for i in range(50)}
    yolo_labelimg(tmp_path, Set({"": images}))
    val = [r["file_name"] for r in records_of(register_folder(str(tmp_path)))["val"]]
    assert len(val) == 10 and val == sorted(val) and val != sorted(images)[:10]
    yolo_labelimg(tmp_path, Set({"": {"new.png": images["000.png"]}}))
    more = [r["file_name"] for r in records_of(register_folder(str(tmp_path)))["val"]]
    assert len(set(val) ^ set(more)) <= 2


def copies(*names: str) -> Split:
    """Roboflow's names of three copies of each photo."""
    return {f"{name}_jpg.rf.{i}f0{i}.jpg": [(0, 1, 1, 9, 9)] for name in names for i in range(3)}


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_copies_of_a_photo_are_held_back_together(tmp_path, share):
    yolo_labelimg(tmp_path, Set({"": copies("a", "b", "c")}))
    records = records_of(register_folder(str(tmp_path), val_share=share))
    photos = {s: [r["file_name"][0] for r in records[s]] for s in ("train", "val")}
    assert not set(photos["train"]) & set(photos["val"])
    assert len(photos["val"]) == (6 if share == 0.99 else 3) and len(photos["train"]) % 3 == 0


def test_copies_of_one_photo_cannot_be_split(tmp_path):
    yolo_labelimg(tmp_path, Set({"": copies("a")}))
    with pytest.raises(DataError, match="has 3 copies of one photo, of which none can be held"):
        register_folder(str(tmp_path))


def test_copies_in_train_and_valid_are_told(tmp_path, caplog):
    yolo_roboflow(tmp_path, Set({"train": copies("a", "b"), "valid": copies("b", "c")}))
    register_folder(str(tmp_path))
    assert "3 of 6 val images in " in caplog.text and "first is b_jpg.rf.0f00.jpg" in caplog.text
    caplog.clear()
    plain = {"a.png": [(0, 1, 1, 9, 9)]}
    yolo_roboflow(tmp_path / "2", Set({"train": plain, "valid": {**plain, **copies("b")}}))
    register_folder(str(tmp_path / "2"))
    assert "are copies of" not in caplog.text


def test_nested_folders_and_links(tmp_path):
    for folder in ("one", "two/three"):
        write_images(tmp_path / "elsewhere" / folder, UNSPLIT, "")
        write_labels(tmp_path / "set/labels" / folder, UNSPLIT, "")
    (tmp_path / "set/images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/labels/back").symlink_to(tmp_path / "set")  # a circle
    (tmp_path / "set/classes.txt").write_text("cat\r\ndog\r\nowl\r\n\r\n")
    records = records_of(register_folder(str(tmp_path / "set"), val_share=0))["train"]
    assert [record["file_name"] for record in records] == 2 * sorted(WHOLE)


def test_records_are_no_ones_to_change(tmp_path):
    yolo_labelimg(tmp_path, UNSPLIT)
    names = register_folder(str(tmp_path))
    records_of(names)["train"][0]["annotations"].clear()
    assert records_of(names)["train"][0]["annotations"]


def test_a_folder_is_read_again(tmp_path):
    yolo_labelimg(tmp_path, UNSPLIT)
    names = register_folder(str(tmp_path))
    (tmp_path / "classes.txt").write_text("cat\ncow\nowl\n")
    assert register_folder(str(tmp_path)) == names
    assert MetadataCatalog.get(names["val"]).thing_classes == ["cat", "cow", "owl"]


def test_roboflows_group_of_all_classes_is_left_out(tmp_path, caplog):
    coco_roboflow(tmp_path, SPLIT)
    with caplog.at_level(logging.INFO):
        register_folder(str(tmp_path))
    assert "The category 0 (animals) of" in caplog.text
    path = tmp_path / "test/_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0  # so it is a class
    path.write_text(json.dumps(content))
    names = register_folder(str(tmp_path))
    assert MetadataCatalog.get(names["train"]).thing_classes == ["animals", *CLASSES]


def test_boxes_beyond_the_image_are_told(tmp_path, caplog):
    coco_json_beside_images_folder(tmp_path, UNSPLIT)
    path = tmp_path / "result.json"
    content = json.loads(path.read_text())
    for annotation, box in zip(
        content["annotations"],
        [[700, 3, 0, 9], [1283, 0, 9, 9], [-3, 50, 30.5, 20.126]],
        strict=False,
    ):
        annotation["bbox"] = box
    path.write_text(json.dumps(content))
    names = register_folder(str(tmp_path), val_share=0)
    first, *_ = records_of(names)["train"]
    assert first["annotations"][0]["bbox"] == [0, 50, 27.5, 11]
    for what in ("have no area and are left out", "lie outside their image and are left out"):
        assert f"1 of 7 boxes in {names['train']} {what}; the first is annotation" in caplog.text
    assert f"clipped to it; the first is annotation 2 in {path}" in caplog.text


def test_several_formats_are_named(tmp_path):
    yolo_labelimg(tmp_path, UNSPLIT)
    voc_side_by_side(tmp_path, UNSPLIT)
    with pytest.raises(
        DataError,
        match=r"several formats, YOLO \(a.txt\) and Pascal VOC \(a.xml\): choose one by DATASETS"
        ".FORMAT yolo or voc",
    ):
        register_folder(str(tmp_path))
    assert records_of(register_folder(str(tmp_path), "voc", 0)) == records_of(
        register_folder(str(tmp_path), "yolo", 0)
    )
    with pytest.raises(DataError, match=r"FORMAT is 'coco', and .* no .* COCO format; there is YO"):
        register_folder(str(tmp_path), "coco")


def test_unusable_folders(tmp_path):
    with pytest.raises(DataError, match="there is no folder .*nowhere: check the path"):
        register_folder(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="has 0 images and 0 files, and no annotations in COCO"):
        register_folder(str(tmp_path))
    write_labels(tmp_path / "Labels", SPLIT, "train")
    with pytest.raises(DataError, match=r"and 2 files \(2 text files, the first is Labels/a.txt\)"):
        register_folder(str(tmp_path))
    with pytest.raises(ConfigError, match="DATASETS.FORMAT is 'json'; choose one of coco, yolo, v"):
        register_folder(str(tmp_path), "json")
    with pytest.raises(ConfigError, match="DATASETS.VAL_SHARE is 1.0; give a number from 0"):
        register_folder(str(tmp_path), val_share=1.0)


@pytest.mark.parametrize(
    ("write", "remove"),
    [
        (coco_roboflow, "train"),
        (yolo_labelimg, "train"),
        (voc_official, "ImageSets/Main/train.txt"),
    ],
)
def test_no_images_to_train_on(tmp_path, write, remove):
    write(tmp_path, SPLIT)
    path = tmp_path / remove
    path.unlink() if path.is_file() else shutil.rmtree(path)
    assert list(register_folder(str(tmp_path))) == ["val", "test"]


def test_labels_without_images_to_train_on(tmp_path):
    yolo_label_studio(tmp_path, SPLIT)
    shutil.rmtree(tmp_path / "images/train")
    with pytest.raises(DataError, match="a.txt has no image"):
        register_folder(str(tmp_path))


@pytest.mark.parametrize("write", [coco_json_beside_images_folder, yolo_labelimg, voc_official])
def test_the_output_of_a_training_is_left_out(tmp_path, write):
    write(tmp_path, SPLIT)
    wanted = records_of(register_folder(str(tmp_path)))
    output = tmp_path / "output" / "photos"
    (output / "inference").mkdir(parents=True)
    for name in ("config.yaml", "log.txt"):
        (output / name).touch()
    (output / "inference" / "end_to_end.json").write_text('{"annotations": {}}')
    shutil.copy(next(tmp_path.rglob("a.png")), output / "val_predictions.png")
    assert records_of(register_folder(str(tmp_path))) == wanted


def test_a_link_to_itself_is_a_file(tmp_path):
    yolo_labelimg(tmp_path, SPLIT)
    (tmp_path / "train" / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match=r"loop.png"):
        register_folder(str(tmp_path))


def test_classes_that_differ_in_case(tmp_path, caplog):
    yolo_labelimg(tmp_path, SPLIT)
    for path in tmp_path.rglob("classes.txt"):
        path.write_text("cat\nDog\ndog\nowl\n\x1b[31m")
    with caplog.at_level(logging.INFO):
        register_folder(str(tmp_path))
    assert "has the classes 'Dog' and 'dog', which differ in upper and lower case" in caplog.text
    assert "\x1b" not in caplog.text and r"\x1b[31m" in caplog.text


def test_one_image_cannot_be_split(tmp_path):
    voc_side_by_side(tmp_path, Set({"": {"a.png": WHOLE["a.png"]}}))
    with pytest.raises(DataError, match="has 1 image, of which none can be held back.*VAL_SHARE"):
        register_folder(str(tmp_path))


def test_a_split_of_the_yaml_that_is_not_there(tmp_path, caplog):
    yolo_roboflow(tmp_path, Set({"train": WHOLE}))
    names = register_folder(str(tmp_path))
    assert list(names) == ["train", "val"] and names["val"].endswith("val 0.2)")
    assert "has the 'val' ../valid/images, which does not exist" in caplog.text
