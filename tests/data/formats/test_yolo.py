"""What can be wrong with a folder in YOLO's format, and what is read of polygons and keypoints."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from written_sets import (
    CLASSES,
    SPLIT,
    UNSPLIT,
    records_of,
    write_text,
    yolo_cvat,
    yolo_label_studio,
    yolo_labelimg,
    yolo_roboflow,
)

from onenet.data import register_folder
from onenet.utils.errors import DataError

LABELS = "train/labels/a.txt"
YAML = "data.yaml"


@pytest.fixture
def root(tmp_path) -> Path:
    """As Roboflow exports it."""
    yolo_roboflow(tmp_path, SPLIT)
    return tmp_path


def yaml(names: str = f"names: {CLASSES}", train: str = "train/images", more: str = "") -> str:
    return f"train: {train}\nval: valid/images\n{names}\n{more}"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            LABELS,
            "0 .5 .5 .1 .1\n\n3 .5 .5 .1 .1",
            r"line 3 of .*a.txt has the class 3, .* 3 class",
        ),
        (LABELS, "-1 .5 .5 .1 .1", r"line 1 of .*a.txt has the class -1, .* numbered from 0 to 2"),
        (LABELS, "0.5 .5 .5 .1 .1", r"line 1 of .*a.txt has the class 0.5"),
        (LABELS, "cat .5 .5 .1 .1", r"line 1 of .*a.txt is 'cat .5 .5 .1 .1': write class, x, y"),
        (LABELS, "0,.5,.5,.1,.1", r"line 1 of .*a.txt is '0,.5,.5,.1,.1': write .* with spaces"),
        (LABELS, "0 .5 .5 .1", r"line 1 of .*a.txt has 4 values: write five"),
        (LABELS, "0 .5 .5 .1 .1 .9", r"line 1 of .*a.txt has 6 values: .* kpt_shape in data.yaml"),
        (LABELS, "0 .5 .5 .1 .1 .1 .1 .1", r"line 1 of .*a.txt has 8 values"),
        (LABELS, "0 -.5 .5 .1 .1", r"line 1 of .*a.txt has the number -0.5, which is negative"),
        (LABELS, "0 20 .5 .1 .1", r"line 1 of .*a.txt has the number 20, .* above 1, as pixels or"),
        (LABELS, "0 .5 nan .1 .1", r"line 1 of .*a.txt has a number that is not finite"),
        (LABELS, "0 .5 .5 inf .1", r"line 1 of .*a.txt has a number that is not finite"),
        (LABELS, "0 .1 .1 .2 .2 .3 1.3", r"line 1 of .*a.txt has the number 1.3"),
        (LABELS, b"\xff\xfe0", r"a.txt is no text in UTF-8"),
        ("train/labels/z.txt", "0 .5 .5 .1 .1", r"the label file .*z.txt has no image: add the"),
        ("labels/z.txt", "", r"the label file .*labels/z.txt has no image"),
        ("train/images/a.jpg", b"", r"the images .* and .* share the label file .*a.txt: rename"),
        ("train/images/z.png", b"", r"The image .*z.png cannot be read \(it has 0 bytes\)"),
        (
            YAML,
            yaml(more="nc: 4"),
            r"data.yaml has 3 names .*\(cat, dog, owl\), but the 'nc' 4: set",
        ),
        (
            YAML,
            yaml("names: [a, b, a]"),
            r"'names' number 2 of .* the name 'a' of 'names' number 0",
        ),
        (YAML, yaml("names: [a, '', b]"), r"'names' number 1 of .*data.yaml is empty"),
        (YAML, yaml("names: [yes, no, 3]"), r"'names' number 0 .* is True, .*: write it in quotes"),
        (
            YAML,
            yaml("names: {1: a, 2: b}"),
            r"data.yaml has 'names' with the numbers \[1, 2\]: numb",
        ),
        (YAML, yaml("names: cat"), r"data.yaml has the 'names' 'cat': give a list"),
        (YAML, yaml(""), r"data.yaml has the 'names' None: give a list"),
        (YAML, yaml(train="photos"), r"data.yaml has the 'train' photos, which is not in"),
        (YAML, yaml(train="[3]"), r"data.yaml has the 'train' \[3\]: give a folder's path"),
        (YAML, yaml(train=""), r"data.yaml names no images under 'train'"),
        (YAML, yaml(train="train/labels"), r"'train' train/labels, and .* has no images: add some"),
        (YAML, yaml(more="kpt_shape: 4"), r"data.yaml has the 'kpt_shape' 4: give the number"),
        (YAML, "train: [", r"data.yaml is no plain yaml.*line 1"),
        ("set.yml", yaml(), r"is described by data.yaml and set.yml: keep one"),
    ],
)
def test_what_is_wrong_is_named(root, file, text, message):
    path = root / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        register_folder(str(root))
    assert str(root) in str(error.value) and "\n" not in str(error.value)
    assert not any(name.startswith(str(root)) for name in DatasetCatalog)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "obj.data",
            "train = data/train.txt\nnames",
            r"line 2 of .*obj.data is 'names': write key",
        ),
        (
            "obj.data",
            "train = train.txt\nclasses = 9",
            r"obj.data has 3 names .* 'classes' '9': set",
        ),
        ("obj.data", "train = away.txt", r"obj.data has the 'train' away.txt, which is not in"),
        (
            "train.txt",
            "data/obj_train_data/z.png",
            r"line 1 of .*train.txt names the image data/.*z",
        ),
        ("train.txt", "\n", r"train.txt names no images"),
        ("train.txt", 2 * "obj_train_data/a.png\n", r"has the image .*a.png twice: name it once"),
        (
            "obj.names",
            "cat\ndog\ncat\n",
            r"line 3 of .* has the name 'cat' of line 1 of .*obj.names",
        ),
        ("obj.names", "cat\n\nowl\n", r"line 2 of .*obj.names is empty: each class needs a name"),
        ("obj.names", "\n", r"obj.names is empty: write the names"),
        ("classes.txt", "cat\ndog\n", r"classes.txt and .*obj.names name different classes"),
    ],
)
def test_what_is_wrong_with_an_export_of_cvat_is_named(tmp_path, file, text, message):
    yolo_cvat(tmp_path, SPLIT)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        register_folder(str(tmp_path))


def test_missing_names_of_classes(root):
    (root / "data.yaml").unlink()
    with pytest.raises(DataError, match="YOLO's format, and no file with the names.*classes.txt"):
        register_folder(str(root))


def test_missing_labels(root):
    for name in ("train", "valid", "test"):
        (root / name / "labels").rename(root / name / "txt")
    message = r"none of the 3 images .*\(train\) has a label file; for .*a.png .* .*labels/a.txt"
    with pytest.raises(DataError, match=message):
        register_folder(str(root))
    (root / "train/txt").rename(root / "train/labels")
    with pytest.raises(DataError, match=r"none of the 1 images .*\(val\) has a label file; for"):
        register_folder(str(root))


def test_missing_images(tmp_path):
    """Label Studio exports none of those that it does not store."""
    yolo_label_studio(tmp_path, UNSPLIT)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DataError, match="labels in YOLO's format, and no images: put them into"):
        register_folder(str(tmp_path))


@pytest.mark.parametrize("folder", ["images", "images/photos", "photos/images"])
def test_labels_beside_images_in_a_folder_called_images(tmp_path, folder):
    yolo_labelimg(tmp_path / folder, UNSPLIT)
    for given in {tmp_path / folder, tmp_path / folder.split("/")[0]}:
        records = records_of(register_folder(str(given), val_share=0))["train"]
        assert [len(record["annotations"]) for record in records] == [3, 0, 1, 2, 1]


def test_names_that_are_no_text(tmp_path):
    yolo_labelimg(tmp_path, UNSPLIT)
    for suffix in (b".png", b".txt"):
        source = os.fsencode(tmp_path) + b"/a" + suffix
        os.rename(source, source.replace(b"/a.", b"/\xff."))
    assert len(records_of(register_folder(str(tmp_path)))["train"]) == 4


def test_files_beside_the_folders_of_splits(root):
    (root / "data.yaml").unlink()
    write_text(root / "classes.txt", "\n".join(CLASSES))
    Image.new("RGB", (9, 9)).save(root / "plot.png")
    with pytest.raises(DataError, match="others that are not, the first is plot.png: move it"):
        register_folder(str(root))


def test_background_images_are_counted(root, caplog):
    with caplog.at_level(logging.INFO):
        register_folder(str(root))
    assert "1 of the 5 images of" in caplog.text
    assert "no label file and count as background, the first is" in caplog.text


def test_polygons_count_as_their_boxes(root, caplog):
    write_text(root / LABELS, "1 .1 .2 .5 .2 .5 1.0 .2 .9\n")
    with caplog.at_level(logging.INFO):
        records = records_of(register_folder(str(root)))
    (annotation,) = records["train"][0]["annotations"]
    assert annotation["bbox"] == [9.7, 12.2, 38.8, 48.8] and annotation["category_id"] == 1
    assert "1 objects of" in caplog.text and "are polygons: their boxes are used" in caplog.text


def test_keypoints_are_left_out(root):
    write_text(root / LABELS, "1 .5 .5 .2 .4 .1 .1\n")
    (root / YAML).write_text(yaml(more="kpt_shape: [2, 3]\n"))
    with pytest.raises(DataError, match=r"line 1 of .*a.txt has 7 values, .* should have 11: mend"):
        register_folder(str(root))
    write_text(root / LABELS, "1 .5 .5 .2 .4 .1 .1 2 1.2 0 0\n")
    (annotation,) = records_of(register_folder(str(root)))["train"][0]["annotations"]
    assert annotation["bbox"] == [38.8, 18.3, 19.4, 24.4]


def test_rounded_fractions_may_leave_the_image_a_little(root):
    write_text(root / LABELS, "1 .5 .5 1.000001 1\n2.0 -0.0000005 .5 .2 .2")
    whole, left = records_of(register_folder(str(root)))["train"][0]["annotations"]
    assert whole["bbox"] == [0, 0, 97, 61] and left["bbox"] == [0, 24.4, 9.7, 12.2]


@pytest.mark.parametrize(
    "train",
    ["{root}/train/images", "/content/animals/train/images", "[./train/images]", "train\\images"],
)
def test_paths_of_the_yaml(root, train):
    (root / YAML).write_text(yaml(train=train.format(root=root)))
    assert len(records_of(register_folder(str(root)))["train"]) == 3


def test_a_yaml_in_a_nested_path(tmp_path):
    yolo_roboflow(tmp_path / "inner", SPLIT)
    assert len(register_folder(str(tmp_path))) == 3
    (tmp_path / "inner/data.yaml").rename(tmp_path / "data.yaml")
    text = yaml(more="path: inner\n").replace("names: ['cat'", "names: [7")
    (tmp_path / "data.yaml").write_text(text)
    names = register_folder(str(tmp_path))
    assert MetadataCatalog.get(names["train"]).thing_classes == ["7", "dog", "owl"]


def test_photos_turned_by_their_exif_orientation(root):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (97, 61)).save(root / "train/images/a.png", exif=exif)
    first = records_of(register_folder(str(root)))["train"][0]
    assert (first["width"], first["height"]) == (61, 97)
    assert first["annotations"][0]["bbox"] == [1.89, 7.95, 12.58, 49.3]
