"""Training and evaluation on DATASETS.FOLDER."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_runs import CONFIG, TINY
from written_sets import (
    SPLIT,
    UNSPLIT,
    coco_cvat,
    coco_roboflow,
    voc_side_by_side,
    write_text,
    yolo_labelimg,
)

from onenet.engine import load_config
from onenet.engine.evaluators import dataset_identity
from onenet.predictor import load_predictor_config
from onenet.utils.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _forgets_datasets():
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_validation_split_is_evaluated(tmp_path):
    coco_roboflow(tmp_path, SPLIT)
    for eval_only in (False, True):
        cfg = load_config(CONFIG, ["DATASETS.FOLDER", str(tmp_path)], eval_only)
        assert cfg.DATASETS.TRAIN == (f"{tmp_path} (coco, train)",)
        assert cfg.DATASETS.TEST == (f"{tmp_path} (coco, val)",)
        assert cfg.MODEL.ONENET.NUM_CLASSES == 3


def test_another_split_is_evaluated(tmp_path):
    coco_roboflow(tmp_path, SPLIT)
    opts = ["DATASETS.FOLDER", str(tmp_path)]
    cfg = load_config(CONFIG, [*opts, "DATASETS.EVAL_SPLIT", "test"])
    assert cfg.DATASETS.TEST == (f"{tmp_path} (coco, test)",)
    with pytest.raises(ConfigError, match="which replaces DATASETS.TEST: leave DATASETS.TEST out"):
        load_config(CONFIG, [*opts, "DATASETS.TEST", "('nowhere',)"])
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(ConfigError, match="EVAL_SPLIT is 'test', and .* has only val; choose"):
        load_config(CONFIG, [*opts, "DATASETS.EVAL_SPLIT", "test"], eval_only=True)
    assert load_config(CONFIG, opts, eval_only=True).DATASETS.TEST == (f"{tmp_path} (coco, val)",)
    with pytest.raises(DataError, match="has images for val, and none to train on: add a folder"):
        load_config(CONFIG, opts)


def test_without_validation(tmp_path):
    voc_side_by_side(tmp_path, UNSPLIT)
    opts = ["DATASETS.FOLDER", str(tmp_path), "DATASETS.VAL_SHARE", "0"]
    assert load_config(CONFIG, opts).DATASETS.TEST == ()
    patience = ["TEST.BEST_METRIC", "bbox/AP", "SOLVER.PATIENCE", "2"]
    with pytest.raises(ConfigError, match="PATIENCE is 2, but DATASETS.TEST is empty"):
        load_config(CONFIG, [*opts, *patience])
    with pytest.raises(ConfigError, match="--eval-only has nothing to evaluate"):
        load_config(CONFIG, opts, eval_only=True)


@pytest.mark.parametrize("key", ["TRAIN_JSON", "TEST_IMAGE_ROOT"])
def test_a_folder_and_json_files_contradict(tmp_path, key):
    message = rf"DATASETS.FOLDER is 'photos' and DATASETS.{key} is 'other'; give the folder or"
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIG, ["DATASETS.FOLDER", "photos", f"DATASETS.{key}", "other"])


def test_predictions_need_no_folder(tmp_path):
    yolo_labelimg(tmp_path / "photos", UNSPLIT)
    path = tmp_path / "config.yaml"
    opts = ["TEST.BEST_METRIC", "bbox/AP", "SOLVER.PATIENCE", "2"]
    opts += ["DATASETS.FOLDER", str(tmp_path / "photos")]
    path.write_text(load_config(CONFIG, opts).dump())
    (tmp_path / "photos").rename(tmp_path / "away")
    assert load_predictor_config(str(path)).MODEL.ONENET.NUM_CLASSES == 3


def test_faults_are_told_before_anything_is_written(train_net, tmp_path):
    yolo_labelimg(tmp_path / "photos", UNSPLIT)
    write_text(tmp_path / "photos/a.txt", "7 .5 .5 .1 .1\n")
    words = ("DATASETS.FOLDER", str(tmp_path / "photos"), "OUTPUT_DIR", str(tmp_path / "out"))
    with pytest.raises(SystemExit, match="^error: line 1 of .*a.txt has the class 7"):
        train_net("--config-file", CONFIG, *words, *TINY)
    assert not (tmp_path / "out").exists()


def test_results_do_not_go_among_the_photos(train_net, tmp_path):
    yolo_labelimg(tmp_path, UNSPLIT)
    words = ("DATASETS.FOLDER", str(tmp_path), "OUTPUT_DIR", f"{tmp_path}/../{tmp_path.name}")
    with pytest.raises(SystemExit, match="OUTPUT_DIR is .*, the folder of the photos, and the res"):
        train_net("--config-file", CONFIG, *words, *TINY)
    assert not (tmp_path / "log.txt").exists()


def test_formats_train_to_the_same_weights(train_net, tmp_path: Path):
    states, results = [], []
    for write in (coco_cvat, yolo_labelimg, voc_side_by_side):
        folder, out = tmp_path / write.__name__, tmp_path / f"{write.__name__}_out"
        write(folder, UNSPLIT)
        words = ("DATASETS.FOLDER", str(folder), "OUTPUT_DIR", str(out), "SOLVER.MAX_ITER", "2")
        train_net("--config-file", CONFIG, *words, *TINY)
        states.append(torch.load(out / "model_final.pth", weights_only=True)["model"])
        last = json.loads((out / "metrics.json").read_text().splitlines()[-1])
        results.append({key: value for key, value in last.items() if "bbox/" in key})
        assert sorted(path.name for path in folder.parent.iterdir() if path.is_file()) == []
    assert results[0] and str(results[0]) == str(results[1]) == str(results[2])
    for state in states[1:]:
        assert all(torch.equal(state[key], value) for key, value in states[0].items())


def test_a_folder_is_the_same_by_another_path(tmp_path, monkeypatch):
    coco_roboflow(tmp_path / "photos", SPLIT)
    monkeypatch.chdir(tmp_path)
    found = set()
    for path in ("photos", "./photos/", str(tmp_path / "photos")):
        cfg = load_config(CONFIG, ["DATASETS.FOLDER", path])
        found.add(dataset_identity(cfg, cfg.DATASETS.TEST[0]))
    assert found == {f"{tmp_path / 'photos'} (coco, val)"}
