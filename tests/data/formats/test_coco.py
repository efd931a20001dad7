"""What can be wrong with a folder in COCO's format; test_coco_json.py has what a json can have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from written_sets import SPLIT, UNSPLIT, coco, coco_cvat, coco_roboflow

from onenet.data import register_folder
from onenet.utils.errors import DataError

TRAIN = "train/_annotations.coco.json"


@pytest.fixture
def root(tmp_path) -> Path:
    """As Roboflow exports it."""
    coco_roboflow(tmp_path, SPLIT)
    return tmp_path


def changed(path: Path, key: str, index: int, **values: object) -> None:
    content = json.loads(path.read_text())
    content[key][index].update(values)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "index", "values", "message"),
    [
        ("annotations", 1, {"bbox": [1, 2, 3]}, r"annotation 1 in .*json has the bbox \[1, 2, 3\]"),
        ("annotations", 1, {"bbox": [1, 2, -3, 4]}, r"annotation 1 in .*json .* is negative"),
        ("annotations", 1, {"category_id": 9}, r"annotation 1 in .*json has category_id 9"),
        ("images", 0, {"width": 5}, r"image 0 in .*json gives .*d.png a size of 5 x 711 pixels"),
        ("images", 0, {"file_name": "z.png"}, r"1 of the images that .*json names .* z.png"),
        ("images", 0, {"file_name": "D.png"}, r"there is d.png, from which it differs in letter"),
        (
            "categories",
            0,
            {"name": "wolf"},
            r"train/.*json differ in their classes \(cat, dog, owl",
        ),
        ("categories", 0, {"name": "cat"}, r"the categories 3 and 1 in .*json both have the name"),
    ],
)
def test_what_is_wrong_is_named(root, key, index, values, message):
    changed(root / TRAIN, key, index, **values)
    with pytest.raises(DataError, match=message) as error:
        register_folder(str(root))
    assert str(root) in str(error.value) and "\n" not in str(error.value)
    assert not any(name.startswith(str(root)) for name in DatasetCatalog)


def test_broken_and_empty_files(root):
    text = (root / TRAIN).read_text()
    (root / TRAIN).write_text(text[:200])
    with pytest.raises(
        DataError, match=r"train/.*json is not valid json: .* at line 1, column 198"
    ):
        register_folder(str(root))
    empty = {**json.loads(text), "images": [], "annotations": []}
    (root / TRAIN).write_text(json.dumps(empty))
    with pytest.raises(DataError, match=r"the list 'images' in .*train/.*json is empty"):
        register_folder(str(root))


def test_two_files_for_a_split(root):
    (root / "train/more.json").write_text((root / TRAIN).read_text())
    with pytest.raises(DataError, match=r"two annotation files for one split, .*more.json: keep"):
        register_folder(str(root))


def test_a_file_whose_split_is_not_told(root):
    (root / "more.json").write_text((root / TRAIN).read_text())
    message = r"train/_annotations.coco.json for training, and more.json whose name tells no split"
    with pytest.raises(DataError, match=message):
        register_folder(str(root))


def test_images_that_are_nowhere_or_broken(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(coco(UNSPLIT, "")))
    with pytest.raises(DataError, match=r"5 of the images that .*result.json names are not in"):
        register_folder(str(tmp_path))
    coco_cvat(tmp_path, UNSPLIT)
    (tmp_path / "images/default/a.png").write_bytes(b"none")
    with pytest.raises(
        DataError, match=r"The image .*a.png cannot be read \(Pillow knows no image"
    ):
        register_folder(str(tmp_path))


def test_images_of_another_orientation(root):
    exif = Image.Exif()
    exif[274] = 8
    Image.new("RGB", (97, 61)).save(root / "train/a.png", exif=exif)
    with pytest.raises(DataError, match=r"image 7 in .* has 61 x 97: if the image has an EXIF"):
        register_folder(str(root))
