"""COCO's AP is of the dataset as it is now; and needs no 'info' in a json."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO

from onenet.config import add_onenet_config
from onenet.engine import build_evaluator
from onenet.evaluation import UncachedCOCOEvaluator

NAME = "a_set_that_may_change"
WRONG, RIGHT = [40.0, 40.0, 60.0, 60.0], [4.0, 6.0, 24.0, 26.0]


@pytest.fixture
def annotation():
    """Of the one image of a set without json, as BCCD is; may be changed."""
    annotation = {"bbox": WRONG, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    image = {"file_name": "1.png", "image_id": 1, "height": 64, "width": 64}
    DatasetCatalog.register(NAME, lambda: [{**image, "annotations": [dict(annotation)]}])
    MetadataCatalog.get(NAME).set(thing_classes=["thing"], evaluator_type="coco")
    yield annotation
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


class FindsRight(torch.nn.Module):
    """Finds an object at RIGHT."""

    def forward(self, batch: list[dict]) -> list[dict]:
        found = Instances((64, 64), pred_boxes=Boxes(torch.tensor([RIGHT])))
        found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
        return [{"instances": found} for _ in batch]


def average_precisions(folder: Path) -> tuple[float, float]:
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST = str(folder), (NAME,)
    evaluator = build_evaluator(cfg, NAME)
    results = inference_on_dataset(FindsRight(), [[{"image_id": 1}]] * 6, evaluator)
    return results["bbox"]["AP"], results["end_to_end"]["AP"]


def test_a_mended_set_is_evaluated_anew(annotation, tmp_path: Path) -> None:
    """In the folder of an earlier evaluation, by this process or another."""
    assert average_precisions(tmp_path) == pytest.approx((0, 0))
    annotation["bbox"] = RIGHT
    assert average_precisions(tmp_path) == pytest.approx((100, 100))
    (tmp_path / "inference" / f"{NAME}_coco_format.json").unlink()
    assert average_precisions(tmp_path / "other") == pytest.approx((100, 100))


def boxes_read(folder: str) -> list[float]:
    for _ in range(20):
        evaluator = UncachedCOCOEvaluator(NAME, tasks=("bbox",), output_dir=folder)
    return evaluator._coco_api.dataset["annotations"][0]["bbox"]


def test_workers_write_the_json_at_the_same_time(annotation, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # which knows the dataset
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        read = list(pool.map(boxes_read, [str(tmp_path)] * 2, timeout=120))
    assert read == [[40, 40, 20, 20]] * 2


def test_changed_annotations_change_their_hash(annotation, tmp_path: Path) -> None:
    """By which comparisons tell of results on other annotations of the same name."""

    def read_hash() -> str:
        average_precisions(tmp_path)
        report = json.loads((tmp_path / "inference" / "end_to_end.json").read_text())
        return report["annotations"]

    before = read_hash()
    assert read_hash() == before
    for change in ({"bbox": RIGHT}, {"iscrowd": 1}):
        annotation.update(change)
        before, last = read_hash(), before
        assert before != last


def test_a_json_without_info(annotation, tmp_path: Path, monkeypatch) -> None:
    """pycocotools 2.0.9 and 2.0.10 read it after the detections are made."""
    load = COCO.loadRes
    monkeypatch.setattr(
        COCO, "loadRes", lambda api, found: (api.dataset["info"], load(api, found))[1]
    )
    box = {"bbox": [4, 6, 20, 20], "area": 400, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 64, "width": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
    register_coco_instances(NAME, {}, str(path), str(tmp_path))
    assert len(load_coco_json(str(path), str(tmp_path), NAME)) == 1
    assert average_precisions(tmp_path) == pytest.approx((100, 100))
