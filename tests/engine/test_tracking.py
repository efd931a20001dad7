"""The writers of WRITERS: small fake libraries, and the real ones where they are installed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage
from tiny_runs import CONFIG, TINY

from onenet.engine import load_config
from onenet.engine.tracking import Tracker, tracker_classes
from onenet.utils.errors import ConfigError, StopTraining

WANDB = """
import json, types
def init(**kwargs):
    with open(LOG, "a") as file: print(json.dumps(["init", kwargs]), file=file)
    return Run(kwargs["id"] or "abc")
class Run:
    def __init__(self, id):
        self.id, self.step = id, 0
    def log(self, scalars, step):
        if "offline" in scalars: raise ConnectionError("no network")
        with open(LOG, "a") as file: print(json.dumps(["log", step, scalars]), file=file)
    def finish(self, exit_code):
        with open(LOG, "a") as file: print(json.dumps(["finish", exit_code]), file=file)
"""


class FakeWandb:
    """A package ``wandb`` on sys.path that notes its calls in a file."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "calls.jsonl"
        (folder / "wandb.py").write_text(f"LOG = {str(self._log)!r}\n{WANDB}")

    def calls(self) -> list[list]:
        """The calls since the last time."""
        calls = [json.loads(line) for line in self._log.read_text().splitlines()]
        self._log.write_text("")
        return calls


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch) -> Iterator[FakeWandb]:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield FakeWandb(folder)
    sys.modules.pop("wandb", None)


def tracker(name: str, folder: Path) -> Tracker:
    folder.mkdir(exist_ok=True)
    opts = ["MODEL.ONENET.NUM_CLASSES", "2", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    opts += ["WRITERS", f"('{name}',)", "OUTPUT_DIR", str(folder)]
    (found,) = tracker_classes(cfg := load_config(CONFIG, opts))
    return found(cfg)


def test_a_training_is_tracked_and_continued(train_net, data_opts, tmp_path, wandb) -> None:
    out = tmp_path / "my_run"
    words = [*data_opts, *TINY, "WRITERS", "('wandb',)", "OUTPUT_DIR", str(out)]
    train_net("--config-file", CONFIG, *words, "SOLVER.MAX_ITER", "2")
    init, *logs, finish = wandb.calls()
    assert init[1]["name"] == "my_run" and init[1]["id"] is None
    assert init[1]["config"]["SOLVER"]["IMS_PER_BATCH"] == 4
    scalars = {name: step for _, step, row in logs for name in row}
    assert scalars["total_loss"] == 1 and scalars["bbox/AP"] == 2
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert logs[0][2]["total_loss"] == pytest.approx(rows[0]["total_loss"])
    assert finish == ["finish", 0]
    train_net("--config-file", CONFIG, "--resume", *words, "SOLVER.MAX_ITER", "3")
    init, *logs, _ = wandb.calls()
    assert (init[1]["id"], init[1]["resume"]) == ("abc", "allow")
    assert min(step for _, step, _ in logs) == 2


def test_a_new_training_is_a_new_run(tmp_path, wandb) -> None:
    for resume in (False, False, True):
        tracker("wandb", tmp_path / "out").start(resume)
    assert [call[1]["id"] for call in wandb.calls()] == [None, None, "abc"]


def test_a_lost_network_does_not_end_a_training(tmp_path, wandb, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("onenet"), "propagate", True)
    writer = tracker("wandb", tmp_path / "out")
    writer.start(resume=False)
    with EventStorage(0) as storage:
        storage.put_scalar("offline", 1.0)
        writer.write()
        storage.iter = 1
        storage.put_scalar("loss", 1.0)
        writer.write()
    writer.close()
    assert [call[0] for call in wandb.calls()] == ["init"]
    assert "written to wandb, and the training goes on: ConnectionError" in caplog.text


@pytest.mark.parametrize(("error", "code"), [(RuntimeError, 1), (StopTraining, 0)])
def test_a_failed_training_is_a_failed_run(tmp_path, wandb, error, code: int) -> None:
    writer = tracker("wandb", tmp_path / "out")
    writer.start(resume=False)
    with pytest.raises(error):
        try:
            raise error
        finally:
            writer.close()
    assert wandb.calls()[-1] == ["finish", code]


def test_what_is_missing_is_named(train_net, data_opts, tmp_path, monkeypatch) -> None:
    (tmp_path / "mlflow").mkdir()  # no package, as the runs of wandb are in a folder "wandb"
    monkeypatch.setattr(sys, "path", [str(tmp_path), *_without("mlflow")])
    words = ["--config-file", CONFIG, *data_opts, *TINY, "OUTPUT_DIR", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="mlflow, which is not installed: pip install mlflow"):
        train_net(*words, "WRITERS", "('mlflow',)")
    with pytest.raises(ConfigError, match="names 'comet'; choose from wandb, mlflow"):
        tracker("comet", tmp_path / "out")


def _without(package: str) -> list[str]:
    return [path for path in sys.path if not Path(path, package).is_dir()]


def test_wandb_itself(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    writer = tracker("wandb", tmp_path / "out")
    _write_two(writer)
    files = list((tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1 and files[0].stem.endswith(writer._run.id)


def test_mlflow_itself(tmp_path: Path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")
    out = tmp_path / "out"
    _write_two(tracker("mlflow", out))
    writer = tracker("mlflow", out)
    writer.start(resume=True)
    with EventStorage(1) as storage:
        storage.put_scalar("total_loss", 9.0, smoothing_hint=False)  # is there already
        writer.write()
        storage.iter = 3
        storage.put_scalar("total_loss", 1.0, smoothing_hint=False)
        writer.write()
    writer.close()
    run = mlflow.get_run((out / "mlflow_run_id.txt").read_text())
    assert run.info.run_name == "out" and run.info.status == "FINISHED"
    assert run.data.params["MODEL.ONENET.NUM_CLASSES"] == "2"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "total_loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 3.0), (1, 2.0), (3, 1.0)]
    assert run.data.metrics["bbox/AP-café _s_"] == 50.0


def _write_two(writer: Tracker) -> None:
    writer.start(resume=False)
    with EventStorage(0) as storage:
        for iteration in (0, 1):
            storage.iter = iteration
            storage.put_scalar("total_loss", 3.0 - iteration, smoothing_hint=False)
            writer.write()
        storage.iter = 2
        storage.put_scalar("bbox/AP-café (s)", 50.0)
        storage.put_scalar("bbox/APl", float("nan"))
        storage.put_scalar("lr", 0.1)
        writer.write()
    writer.close()
