"""Sets in COCO's format: what is registered, and the sentence for everything that can be wrong."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from onenet.data import check_same_classes, register_coco_json
from onenet.data.coco_json import read_coco_json
from onenet.utils.errors import DataError

GOOD = {
    "images": [
        {"id": 3, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 4, "file_name": "sub/b.png", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 10, 12]},
        {"id": 2, "image_id": 3, "category_id": 5, "bbox": [1.5, 2, 20, 12]},
        {"id": 3, "image_id": 4, "category_id": 5, "bbox": [1.5, 2, 20, 12]},
    ],
    # not sorted, nor counted from 1
    "categories": [{"id": 9, "name": "wolf"}, {"id": 5, "name": "sheep"}],
}


@pytest.fixture
def registered():
    """Whatever a test registers is forgotten at its end."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def root(tmp_path, monkeypatch, registered) -> Path:
    """A folder with the images of GOOD, and a cache of its own."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    for name in ("images/a.png", "images/sub/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def register(root: Path, content: object, file_name: str = "set.json") -> str:
    json_file = root / file_name
    json_file.write_text(content if isinstance(content, str) else json.dumps(content))
    return register_coco_json(str(json_file), str(root / "images"))


def test_classes_are_known_before_loading(root):
    name = register(root, GOOD)
    assert name == f"{root / 'set.json'} ({root / 'images'})"
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["sheep", "wolf"]
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 9: 1}
    assert metadata.evaluator_type == "coco"
    assert metadata.image_root == str(root / "images")
    first, second = DatasetCatalog.get(name)
    assert [annotation["category_id"] for annotation in first["annotations"]] == [1, 0]
    assert second["file_name"] == str(root / "images/sub/b.png")


def test_registering_again_takes_the_newest(root):
    name = register(root, GOOD)
    renamed = broken("categories", 0, name="dog")
    assert register(root, renamed) == name
    assert MetadataCatalog.get(name).thing_classes == ["sheep", "dog"]
    assert len(DatasetCatalog.get(name)) == 2


def test_one_json_with_two_image_folders_is_two_sets(root):
    """Such as the original and the blurred images, for training and for testing."""
    first = register(root, GOOD)
    shutil.copytree(root / "images", root / "blurred")
    second = register_coco_json(str(root / "set.json"), f"{root / 'blurred'}/")
    assert second == f"{root / 'set.json'} ({root / 'blurred'})"  # with or without a slash
    for name, folder in ((first, "images"), (second, "blurred")):
        assert Path(DatasetCatalog.get(name)[0]["file_name"]) == root / folder / "a.png"
        assert Path(MetadataCatalog.get(name).image_root) == root / folder


def test_evaluator_works_without_area_and_iscrowd(root):
    evaluate_ground_truth(root, GOOD)


@pytest.mark.parametrize("key_value", [("id", 0), ("segmentation", [[]])])
def test_evaluator_works_with_what_labelling_tools_write(root, key_value):
    content = copy.deepcopy(GOOD)
    for annotation in content["annotations"]:
        annotation.update(area=1.0, iscrowd=0)
    content["annotations"][0].update([key_value])
    evaluate_ground_truth(root, content)


def evaluate_ground_truth(root: Path, content: dict) -> None:
    """Ground truth fed as predictions has an AP of 100."""
    name = register(root, content)
    evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=False, use_fast_impl=False)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        instances = Instances((30, 40))
        boxes = torch.tensor([annotation["bbox"] for annotation in record["annotations"]])
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes)
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        instances.scores = torch.ones(len(boxes))
        evaluator.process([record], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert json.loads((root / "set.json").read_text()) == content  # the user's file stays as it was


def test_complete_file_serves_for_evaluation_itself(root):
    content = copy.deepcopy(GOOD)
    for annotation in content["annotations"]:
        annotation.update(area=1.0, iscrowd=0)
    name = register(root, content)
    assert MetadataCatalog.get(name).json_file == str(root / "set.json")


def test_set_without_objects_is_fine(root):
    assert len(DatasetCatalog.get(register(root, {**GOOD, "annotations": []}))) == 2


def test_flat_boxes_are_counted_in_one_warning(root, caplog):
    content = copy.deepcopy(GOOD)
    content["annotations"][0]["bbox"] = [1, 2, 0, 5]
    content["annotations"][1]["bbox"] = [1, 2, 5, 0.0]
    with caplog.at_level(logging.WARNING):
        register(root, content)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("2 boxes in") and "set.json have no area" in message


def test_boxes_outside_their_image_are_counted_in_one_warning(root, caplog):
    content = copy.deepcopy(GOOD)
    content["annotations"][0]["bbox"] = [-10, 2, 10, 5]
    content["annotations"][1]["bbox"] = [1, 30, 5, 5]
    content["annotations"][2]["bbox"] = [-10, -10, 100, 100]  # partly inside
    with caplog.at_level(logging.WARNING):
        register(root, content)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("2 boxes in") and "set.json lie outside their image" in message


def with_boxes(*boxes: list[float], **values: object) -> dict:
    """GOOD with these boxes, in the image of 40 x 30 pixels."""
    annotation = {"image_id": 3, "category_id": 9, **values}
    annotations = [{**annotation, "id": i, "bbox": box} for i, box in enumerate(boxes, start=1)]
    return {**GOOD, "annotations": annotations}


CORNERS = [[10 + i, 10, 35 + i, 28] for i in range(5)]  # the last one is a pixel over the border
INSIDE = [[10 + i, 10, 12, 8] for i in range(5)]
OVER = [[1, 2, 40, 29]] * 9  # as of tools that go a pixel over the border
TRUNCATED = [[20, 15, 25, 14], [2, 15, 12, 25], [25, 3, 24, 12], [1, 20, 10, 20], [30, 2, 20, 9]]


@pytest.mark.parametrize(
    "boxes",
    [[[0.1, 0.2, 0.5, 0.5]], [[0, 0, 1, 1.0], [0.5, 0.5, 0.1, 0.2], [0.5, 0.5, 0, 0.2]]],
)
def test_boxes_that_are_fractions(root, boxes):
    with pytest.raises(DataError, match=r"all boxes .*set.json lie between 0 and 1 \(annotation 1"):
        register(root, with_boxes(*boxes))
    register(root, with_boxes(*boxes, [1, 2, 10, 12]))


def test_boxes_that_are_corners(root):
    message = (
        r"5 of 7 boxes .*set.json leave their image .* 7 lie inside it as corners .*annotation 3"
        r" with \[10, 10, 35, 28\] in 40 x 30 pixels\): .*subtract x0 and y0"
    )
    with pytest.raises(DataError, match=message):
        register(root, with_boxes([1, 1, 5, 5], [2, 2, 9, 9], *CORNERS))
    with pytest.raises(DataError, match="12 of 20 boxes .* 19 lie inside"):  # one of them is broken
        register(root, with_boxes([9, 9, 9, 9], *[[1, 1, 5, 5]] * 7, *[[5, 5, 36, 28]] * 12))


@pytest.mark.parametrize(
    "boxes",
    [
        [*CORNERS, [20, 9, 10, 5], [20, 9, 11, 5]],  # not all are in order as corners
        [*CORNERS, *INSIDE],  # half of them leave the image
        [*CORNERS, [1, 1, 45, 32], [1, 1, 45, 33]],  # not all lie inside as corners
        OVER,
        TRUNCATED,
        [[0, 0, 0, 0]],
    ],
)
def test_boxes_that_may_be_as_coco_wants_them(root, boxes, caplog):
    register(root, with_boxes(*boxes))
    assert "corners" not in caplog.text


def test_few_boxes_that_may_be_corners_are_a_warning(root, caplog):
    register(root, with_boxes(*CORNERS[:4]))
    assert "4 of 4 boxes in" in caplog.text and "if they are corners, subtract" in caplog.text


@pytest.mark.parametrize(
    "path",
    [
        *("coco/annotations/instances_train2017.json", "coco/annotations/instances_val2017.json"),
        *("voc2007/train.json", "voc2007/val.json", "voc2007/train_2501.json"),
        *("voc2007/val_2510.json", "kangaroo/train.json", "kangaroo/val.json"),
        *("coco_people/train.json", "coco_people/val.json"),
    ],
)
def test_real_sets_pass(path, real_data, caplog):
    json_file = real_data / path
    if not json_file.is_file():
        pytest.skip(f"no {path} under {real_data}")
    images = json_file.parent / "images"
    if path.startswith("coco/"):
        images = real_data / "coco" / json_file.stem.removeprefix("instances_")
    assert read_coco_json(str(json_file), str(images))["annotations"]
    assert "corners" not in caplog.text and "outside" not in caplog.text
    # VOC's difficult objects
    assert ("are crowd regions" in caplog.text) == (path == "voc2007/val.json")


def test_many_crowd_regions_are_counted_in_one_warning(root, caplog):
    content = with_boxes(*[[1, 2, 10, 12]] * 20)
    content["annotations"][4]["iscrowd"] = 1
    caplog.set_level("WARNING")
    register(root, content)
    assert not caplog.records
    content["annotations"][7]["iscrowd"] = True
    for _ in range(2):  # for training and for testing
        register(root, content)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("2 of 20 annotations in") and "set their iscrowd to 0" in message


@pytest.mark.parametrize(
    ("exists", "name", "cause"),
    [
        ("sub/c.png", "sub\\c.png", "backslashes, where a path has slashes"),
        ("c d.png", "c%20d.png", "characters written as in a web address, such as %20"),
        ("c%20d.png", "c d.png", "characters written as in a web address, such as %20"),
        ("Sub/C.PNG", "sub/c.png", "letter case"),
        ("SUB/C d.png", "sub\\c%20d.png", "backslashes.* and characters .* and letter case"),
        (*(unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")), "the Unicode form.*"),
        (*(unicodedata.normalize(form, "é.png") for form in ("NFD", "NFC")), "the Unicode form.*"),
    ],
)
def test_names_that_differ_little_from_those_of_files(root, exists, name, cause):
    (root / "images" / exists).parent.mkdir(exist_ok=True)
    (root / "images" / exists).touch()
    message = rf"1 of the images .*: there is {exists}, from which it differs in {cause}; write"
    with pytest.raises(DataError, match=message):
        register(root, broken("images", 1, file_name=name))


def broken(key: str, index: int, **changes: object) -> dict:
    """GOOD with one entry changed; a value of None removes the key."""
    content = copy.deepcopy(GOOD)
    entry = {**content[key][index], **changes}
    content[key][index] = {k: value for k, value in entry.items() if value is not None}
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [\n1,,', "not valid json: .* at line 2, column 3"),
        ([], "holds a list where COCO's format has an object"),
        ({**GOOD, "categories": None}, "no list 'categories'"),
        ({**GOOD, "categories": []}, "list 'categories' .* is empty"),
        ({**GOOD, "images": []}, "list 'images' .* is empty"),
        ({"images": [1], "categories": [1]}, "no list 'annotations'"),
        ({**GOOD, "images": ["a.png"]}, "image number 0 .* not an object: 'a.png'"),
        (broken("categories", 1, id=None), "category number 1 .* no integer 'id'"),
        (broken("categories", 1, name=None), "category 5 .* no 'name'"),
        (broken("categories", 1, id=9), "category id 9 twice"),
        (broken("images", 0, id=None), "image number 0 .* no integer 'id'"),
        (broken("images", 0, id=4), "image id 4 twice"),
        (broken("images", 0, file_name=None), "image 3 .* no 'file_name'"),
        (broken("images", 0, width=None), "image 3 .* no 'width'"),
        (broken("images", 0, height=None), "image 3 .* no 'height'"),
        (broken("images", 1, file_name="sub/c.png"), "1 of the images .* sub/c.png"),
        (broken("annotations", 0, id=None), "annotation number 0 .* no integer 'id'"),
        (broken("annotations", 0, id=2), "annotation id 2 twice"),
        (broken("annotations", 0, category_id=7), "annotation 1 .*category_id 7.*'categories'"),
        (broken("annotations", 0, image_id=7), "annotation 1 .*image_id 7.*'images'"),
        (broken("annotations", 0, bbox=None), "annotation 1 .* no 'bbox'"),
        (broken("annotations", 0, bbox=[1, 2, 3]), r"annotation 1 .*\[1, 2, 3\].*four finite"),
        (broken("annotations", 0, bbox=[1, 2, 3, float("nan")]), "four finite numbers"),
        (broken("annotations", 0, bbox=[1, 2, 3, "4"]), "four finite numbers"),
        (broken("annotations", 0, bbox=[1, 2, 3, True]), "four finite numbers"),
        (broken("annotations", 0, bbox=[1, 2, 3, 1e300]), "four finite numbers of at most 1e"),
        (broken("annotations", 0, bbox=[1, 2, -3, 4]), "annotation 1 .*negative.*mend it"),
        (broken("annotations", 0, category_id=[5]), r"annotation 1 .*category_id \[5\]"),
        (broken("images", 0, width=0), "image 3 .*width 0: it must be a number above 0"),
        (broken("images", 0, height="30"), "image 3 .*height '30': it must be a number"),
        (broken("images", 0, file_name=7), "image 3 .*file_name 7: it must be a text"),
        (broken("annotations", 0, ignore=1), "annotation 1 .*'ignore'"),
        (broken("annotations", 0, iscrowd="1"), "annotation 1 .*iscrowd '1': it must be 1 for"),
        (broken("categories", 1, name=" "), "category 5 .*name ' ': it must be a text"),
        (broken("categories", 1, name="wolf "), "both have the name 'wolf ': rename one"),
        (broken("categories", 1, name=7), "category 5 .*name 7: it must be a text, in quotes"),
        ({**GOOD, "categories": [{"id": 5, "name": None}]}, "category 5 .*name None: it must be"),
        (broken("categories", 1, name="wolf"), "categories 9 and 5 .*the name 'wolf': rename one"),
        (broken("images", 1, file_name="./a.png"), "image 4 .*'./a.png' of image 3: remove one"),
        ("\ufeff{}", r"begins with a byte order mark \(BOM\).*: save it as UTF-8 without BOM"),
    ],
)
def test_what_is_wrong_is_named(root, content, message):
    with pytest.raises(DataError, match=message) as error:
        register(root, content)
    assert str(root / "set.json") in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(name.startswith(str(root)) for name in DatasetCatalog)


def test_wrong_paths_are_named(root):
    with pytest.raises(DataError, match=r"no annotation file .*nowhere\.json"):
        register_coco_json(str(root / "nowhere.json"), str(root / "images"))
    (root / "set.json").write_text(json.dumps(GOOD))
    with pytest.raises(DataError, match=r"no image folder .*nowhere"):
        register_coco_json(str(root / "set.json"), str(root / "nowhere"))
    with pytest.raises(DataError, match="a.png is not a json file"):
        (root / "images/a.png").write_bytes(b"\x89PNG\xff")
        register_coco_json(str(root / "images/a.png"), str(root / "images"))


def test_train_and_test_must_have_the_same_classes(root):
    train = register(root, GOOD)
    check_same_classes(train, register(root, GOOD, "same.json"))
    fewer = {**GOOD, "annotations": [], "categories": GOOD["categories"][:1]}
    renamed = broken("categories", 0, name="dog")
    renumbered = {
        **GOOD,
        "annotations": [],
        "categories": [{"id": 1, "name": "sheep"}, {"id": 2, "name": "wolf"}],
    }
    check_same_classes(train, register(root, renumbered, "renumbered.json"))
    for content in (fewer, renamed):
        test = register(root, content, "test.json")
        with pytest.raises(DataError, match=re.escape(f"{train} and {test} differ")):
            check_same_classes(train, test)


def test_a_completed_copy_that_cannot_be_written(root, monkeypatch):
    """For instance on a full disk: no half file holds the room."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"onenet_.*\.json, the completed copy .*\(full\)"):
        register(root, GOOD)
    assert not list((root / "cache").iterdir())
