"""What is evaluated, resumed, exported and drawn is what was trained, or an error says so."""

from __future__ import annotations

import json
import logging
import os
import shutil
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from tiny_runs import CONFIG, TINY

from onenet.checkpoint import OneNetCheckpointer, read_checkpoint
from onenet.engine import load_config
from onenet.export import Metadata
from onenet.predictor import Predictor, load_predictor_config
from onenet.utils.errors import ConfigError


@pytest.fixture
def start(train_net) -> Callable[..., None]:
    """Runs train_net.py with options (--resume, --eval-only) and overrides in any order."""

    def call(*words: str) -> None:
        options = [word for word in words if word.startswith("--")]
        overrides = [word for word in words if not word.startswith("--")]
        train_net("--config-file", CONFIG, *options, *TINY, *overrides)

    return call


@pytest.fixture
def run(start, data_opts: list[str], tmp_path: Path) -> Path:
    """The folder of a run on the classes odd and even."""
    out = tmp_path / "run"
    steps = ("SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1")
    start(*data_opts, *steps, "OUTPUT_DIR", str(out))
    return out


@pytest.fixture
def error(start) -> Callable[..., str]:
    """The error of such a run, which has to be one sentence."""

    def call(*words: str) -> str:
        with pytest.raises(SystemExit) as caught:
            start(*words)
        message = str(caught.value.code)
        assert message.startswith("error: ") and "\n" not in message
        return message

    return call


def json_opts(key: str, path: Path, folder: Path) -> list[str]:
    return [f"DATASETS.{key}_JSON", str(path), f"DATASETS.{key}_IMAGE_ROOT", str(folder)]


@pytest.fixture
def changed(coco_set: tuple[Path, Path], tmp_path: Path) -> Callable[..., Any]:
    """Overrides for the set with other categories: DATASETS.<key>, and new (id, name) by old id."""
    path, folder = coco_set

    def write(key: str, new: dict[int, tuple[int, str]]) -> list[str]:
        content = json.loads(path.read_text())
        content["categories"] = [{"id": i, "name": name} for i, name in new.values()]
        kept = [a for a in content["annotations"] if a["category_id"] in new]
        content["annotations"] = kept
        for annotation in kept:
            annotation["category_id"] = new[annotation["category_id"]][0]
        other = tmp_path / f"{'_'.join(name for _, name in new.values())}.json"
        other.write_text(json.dumps(content))
        return json_opts(key, other, folder)

    return write


SWAPPED = {3: (2, "odd"), 4: (1, "even")}  # the same classes, in another order of the ids


def files(folder: Path) -> dict[str, bytes]:
    """Without the log, to which this process goes on writing."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.name != "log.txt"]
    return {str(p): p.read_bytes() for p in found}


def evaluated(run: Path, *words: str) -> list[str]:
    return ["--eval-only", "MODEL.WEIGHTS", str(run / "model_final.pth"), *words]


def test_classes_in_another_order_are_not_evaluated(run, error, changed, tmp_path) -> None:
    before = files(run)
    words = evaluated(run, "OUTPUT_DIR", str(tmp_path / "out"), *changed("TEST", SWAPPED))
    message = error(*words)
    assert "['odd', 'even']" in message and "['even', 'odd']" in message
    assert not (tmp_path / "out" / "inference").exists() and files(run) == before


def test_classes_under_other_ids_are_the_same(run, start, changed, tmp_path) -> None:
    out = tmp_path / "out"
    other = changed("TEST", {3: (70, "odd"), 4: (90, "even")})
    words = evaluated(run, "OUTPUT_DIR", str(out), *other)
    start(*words)
    was = json.loads((run / "inference" / "coco_instances_results.json").read_text())
    now = json.loads((out / "inference" / "coco_instances_results.json").read_text())
    assert {d["category_id"] for d in now} <= {70, 90}
    assert [{3: 70, 4: 90}[d["category_id"]] for d in was] == [d["category_id"] for d in now]


@pytest.mark.parametrize("decay", ["0.0", "0.9"])
def test_the_last_evaluation_is_that_of_the_checkpoint(
    start, data_opts, tmp_path, decay: str
) -> None:
    """The same detections (ultralytics 16532, yolov5 13629), of the average, too."""
    out, again = tmp_path / "run", tmp_path / "again"
    steps = ("SOLVER.MAX_ITER", "3", "SOLVER.EMA_DECAY", decay)
    start(*data_opts, *steps, "OUTPUT_DIR", str(out))
    start(*evaluated(out, "OUTPUT_DIR", str(again), *data_opts[4:]))
    results = [folder / "inference" / "coco_instances_results.json" for folder in (out, again)]
    assert results[0].read_bytes() == results[1].read_bytes()


def test_metrics_of_classes_have_their_names(run) -> None:
    """mmdetection 2279 and 5000."""
    last = json.loads((run / "metrics.json").read_text().splitlines()[-1])
    assert {key for key in last if key.startswith("bbox/AP-")} == {"bbox/AP-odd", "bbox/AP-even"}


def test_a_dataset_without_its_comma(error) -> None:
    """detectron2 253 and 1946: a string, of which each letter is looked up as a dataset."""
    assert "give a tuple, as ('digits_train',) is." in error("DATASETS.TRAIN", "('digits_train')")


@pytest.mark.parametrize("max_iter", [1, 4])
def test_resuming_with_another_number_of_iterations(run, start, data_opts, max_iter: int) -> None:
    """detectron2 3381."""
    start("--resume", *data_opts, "SOLVER.MAX_ITER", str(max_iter), "OUTPUT_DIR", str(run))
    last = read_checkpoint(str(run / "model_final.pth"))["iteration"]
    assert last == max(max_iter, 2) - 1


def forget_names(run: Path) -> None:
    """As checkpoints were before they had names."""
    path = run / "model_final.pth"
    content = torch.load(path, weights_only=True)
    assert content.pop("class_names") == ["odd", "even"]
    torch.save(content, path)


def test_an_older_checkpoint_has_the_classes_of_its_run(run, error, changed, tmp_path) -> None:
    forget_names(run)
    words = evaluated(run, "OUTPUT_DIR", str(tmp_path / "out"), *changed("TEST", SWAPPED))
    message = error(*words)
    assert "['odd', 'even']" in message and "['even', 'odd']" in message


def test_an_evaluation_in_the_runs_own_folder_keeps_its_config(
    run, start, error, data_opts, changed
) -> None:
    forget_names(run)
    before = (run / "config.yaml").read_bytes()
    here = evaluated(run, "OUTPUT_DIR", str(run))
    start(*here, *data_opts[4:])
    assert (run / "config.yaml").read_bytes() == before
    shutil.rmtree(run / "inference")
    message = error(*here, *changed("TEST", SWAPPED))
    assert "['odd', 'even']" in message and "['even', 'odd']" in message
    assert (run / "config.yaml").read_bytes() == before


def test_classes_of_a_set_that_tells_them_when_loaded(run, error, coco_set, changed) -> None:
    """As one of Detectron2's register_coco_instances."""
    _, path, _, folder = changed("TEST", SWAPPED)
    register_coco_instances("tells_late", {}, path, folder)
    register_coco_instances("of_training", {}, *map(str, coco_set))
    try:
        words = evaluated(run, "OUTPUT_DIR", str(run.parent / "out"), "DATASETS.TRAIN", "()")
        message = error(*words, "DATASETS.TEST", "('tells_late',)")
        assert "['odd', 'even']" in message and "['even', 'odd']" in message
        sets = ["DATASETS.TRAIN", "('of_training',)", "DATASETS.TEST", "('tells_late',)"]
        assert "differ in their classes" in error(*sets, "OUTPUT_DIR", str(run.parent / "other"))
    finally:
        for name in ("tells_late", "of_training"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_unknown_classes_are_a_warning(run, start, data_opts, tmp_path, caplog) -> None:
    forget_names(run)
    (run / "config.yaml").unlink()
    words = evaluated(run, "OUTPUT_DIR", str(tmp_path / "out"), *data_opts[4:])
    logging.getLogger("onenet").propagate = True
    try:
        start(*words)
    finally:
        logging.getLogger("onenet").propagate = False
    assert "does not have the names of its classes" in caplog.text


def test_pictures_and_exports_have_the_names_of_the_training(run, changed) -> None:
    """Whatever set the config names for testing."""
    cfg = load_predictor_config(CONFIG, [*TINY, *changed("TEST", SWAPPED)])
    predictor = Predictor(cfg, str(run / "model_final.pth"))
    assert predictor.class_names == ["odd", "even"]
    metadata = Metadata.from_model(cfg, predictor.model, predictor.class_names, None, False)
    assert metadata.class_names == ["odd", "even"] and metadata.category_ids == [2, 1]

    cfg = load_predictor_config(CONFIG, [*TINY, *changed("TEST", {3: (3, "a"), 4: (4, "b")})])
    metadata = Metadata.from_model(cfg, predictor.model, predictor.class_names, None, False)
    assert metadata.category_ids is None


@pytest.mark.parametrize(
    ("opts", "what"),
    [
        (["MODEL.ONENET.HEAD.NUM_CONVS", "3"], "head.cls_"),
        (["MODEL.ONENET.HEAD.NUM_CONVS", "5"], "lacks head.cls_"),
        (["MODEL.ONENET.RESCORING.CANDIDATES", "100"], "lacks rescoring"),
        (["MODEL.ONENET.HEAD.CONV_DIM", "128"], "in another shape"),
    ],
)
def test_weights_that_do_not_fit_are_not_evaluated(
    run, error, data_opts, tmp_path, opts: list[str], what: str
) -> None:
    out = tmp_path / "out"
    message = error(*evaluated(run, "OUTPUT_DIR", str(out), *data_opts[4:], *opts))
    assert what in message and "Give the config" in message
    assert not (out / "inference").exists()


def test_a_backbone_alone_is_not_evaluated(run, error, data_opts, tmp_path) -> None:
    content = read_checkpoint(str(run / "model_final.pth"))
    state = {k: v for k, v in content["model"].items() if k.startswith("backbone.")}
    torch.save({"model": state}, tmp_path / "backbone.pth")
    words = ["--eval-only", "MODEL.WEIGHTS", str(tmp_path / "backbone.pth"), *data_opts[4:]]
    assert "it lacks head." in error(*words, "OUTPUT_DIR", str(tmp_path / "out"))


def test_random_weights_are_not_evaluated(error, data_opts, tmp_path) -> None:
    words = ["--eval-only", "MODEL.WEIGHTS", "", *data_opts[4:]]
    assert "MODEL.WEIGHTS is empty" in error(*words, "OUTPUT_DIR", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_resuming_with_other_classes(run, error, changed) -> None:
    """One more, one fewer, or the same number with other names."""
    before = files(run)
    words = ["--resume", "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(run), "DATASETS.TEST", "()"]
    three = {3: (3, "odd"), 4: (4, "even"), 5: (5, "prime")}
    for categories in (three, {3: (3, "odd")}):
        message = error(*words, *changed("TRAIN", categories))
        assert "in another shape head.cls_score" in message and "as MODEL.WEIGHTS" in message
    message = error(*words, *changed("TRAIN", SWAPPED))
    assert "['odd', 'even']" in message and "['even', 'odd']" in message
    after = files(run)
    kept = [name for name in before if name.endswith(".pth") or "inference" in name]
    assert kept and all(after[name] == before[name] for name in kept)


@pytest.mark.parametrize(
    ("opts", "what"),
    [
        (["SOLVER.OPTIMIZER", "SGD"], "the optimizer's state"),
        (["MODEL.ONENET.HEAD.NORM", "BN"], "head.cls_"),
        (["SOLVER.BACKBONE_LR_FACTOR", "0.5"], "the optimizer's state"),
    ],
)
def test_resuming_with_another_model_or_solver(
    run, error, data_opts, opts: list[str], what: str
) -> None:
    words = ["--resume", "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(run), *data_opts]
    assert what in error(*words, *opts)


def test_resuming_with_other_settings_of_the_optimizer(run, start, data_opts) -> None:
    words = ["--resume", "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(run), *data_opts]
    start(*words, "SOLVER.WEIGHT_DECAY", "0.5")
    groups = read_checkpoint(str(run / "model_final.pth"))["trainer"]["_trainer"]["optimizer"]
    assert max(group["weight_decay"] for group in groups["param_groups"]) == 0.5
    assert "goes on with weight_decay 0.5" in (run / "log.txt").read_text()


def test_a_checkpoint_without_an_optimizer(run, error, data_opts) -> None:
    path = run / "model_final.pth"
    content = torch.load(path, weights_only=True)
    content["trainer"] = {"iteration": 1}
    torch.save(content, path)
    words = ["--resume", "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(run), *data_opts]
    assert "is missing, or of other parameters" in error(*words)


def test_moments_of_another_shape(run, error, data_opts) -> None:
    path = run / "model_final.pth"
    content = torch.load(path, weights_only=True)
    state = content["trainer"]["_trainer"]["optimizer"]["state"]
    state[5]["exp_avg"] = state[5]["exp_avg"].flatten()[:-1]
    torch.save(content, path)
    words = ["--resume", "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(run), *data_opts]
    assert "the optimizer's state in the checkpoint" in error(*words)


def test_a_result_is_not_overwritten_by_another_training(run, error, data_opts) -> None:
    before = files(run)
    words = [*data_opts, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(run)]
    message = error(*words)
    assert "model_final.pth" in message and "--resume" in message
    assert files(run) == before
    (run / "last_checkpoint").unlink()
    assert "write the name of one" in error("--resume", *words)


def test_a_result_is_not_overwritten_by_another_evaluation(
    run, error, start, data_opts, changed
) -> None:
    before = files(run)
    words = evaluated(run, "OUTPUT_DIR", str(run))
    other = changed("TEST", {3: (3, "odd"), 4: (4, "even")})
    message = error(*words, *other)
    assert data_opts[5] in message and other[1] in message and "inference" in message
    assert files(run) == before
    start(*words, *data_opts[4:])  # the same set again
    relative = [os.path.relpath(word) if "/" in word else word for word in data_opts[4:]]
    start(*words, *relative)

    shutil.move(run / "inference", run / "kept")
    start(*words, *other)


def test_weights_without_a_network(monkeypatch) -> None:
    def get_local_path(path: str, **kwargs: Any) -> str:
        raise urllib.error.URLError("no route to host")

    cfg = load_config(CONFIG, ["MODEL.ONENET.NUM_CLASSES", "2", *no_data()])
    checkpointer = OneNetCheckpointer(build_model(cfg))
    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", get_local_path)
    for url in ("detectron2://COCO-Detection/x/model.pkl", "https://example.com/model.pth"):
        with pytest.raises(ConfigError, match=f"{url} cannot be downloaded .no route to host"):
            checkpointer.load(url)


def no_data() -> list[str]:
    return ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]


def test_frozen_layers_without_weights_are_told(start, data_opts, tmp_path) -> None:
    words = [*data_opts[:4], "SOLVER.MAX_ITER", "1", "MODEL.BACKBONE.FREEZE_AT", "2"]
    start(*words, "OUTPUT_DIR", str(tmp_path / "out"))
    assert "they stay random" in (tmp_path / "out" / "log.txt").read_text()
