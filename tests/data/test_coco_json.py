"""Sets in COCO's format: what is registered, and the sentence for everything that can be wrong."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from onenet.data import check_same_classes, register_coco_json
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
    assert name == str(root / "set.json")
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
    assert register(root, GOOD) == name
    (root / "images").rename(root / "moved")
    assert register_coco_json(name, str(root / "moved")) == name
    assert DatasetCatalog.get(name)[0]["file_name"] == str(root / "moved/a.png")
    assert MetadataCatalog.get(name).image_root == str(root / "moved")


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
    assert MetadataCatalog.get(name).json_file == name


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
    ],
)
def test_what_is_wrong_is_named(root, content, message):
    with pytest.raises(DataError, match=message) as error:
        register(root, content)
    assert str(root / "set.json") in str(error.value)
    assert "\n" not in str(error.value)
    assert str(root / "set.json") not in DatasetCatalog


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
