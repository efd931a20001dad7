"""The best checkpoint, patience, and lengths in epochs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import CONFIG, TINY

from onenet.checkpoint import read_checkpoint
from onenet.engine import Trainer, load_config
from onenet.utils.errors import ConfigError

BEST = ("TEST.BEST_METRIC", "bbox/AP", "TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "2")


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations with given values of AP, one after the other."""

    def script(*values: float) -> list[float]:
        left = list(values)
        test = classmethod(lambda cls, cfg, model: {"bbox": {"AP": left.pop(0)}})
        monkeypatch.setattr(Trainer, "test", test)
        return left

    return script


@pytest.fixture
def start(train_net, data_opts, tmp_path: Path):
    """Trains into tmp_path/run."""

    def call(*words: str) -> Path:
        options = [word for word in words if word.startswith("--")]
        overrides = [word for word in words if not word.startswith("--")]
        out = tmp_path / "run"
        train_net(
            *("--config-file", CONFIG, *options, *data_opts, *TINY, *BEST),
            *("OUTPUT_DIR", str(out), *overrides),
        )
        return out

    return call


def best(folder: Path) -> tuple[int, float]:
    content = read_checkpoint(str(folder / "model_best.pth"))
    assert content["class_names"] == ["odd", "even"] and "trainer" not in content
    return content["iteration"], content["metric"]["bbox/AP"]


def weights(path: Path) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in read_checkpoint(str(path))["model"].values()]


def test_the_best_is_saved(start, scripted) -> None:
    scripted(3.0, 5.0, float("nan"), 5.0)
    out = start("SOLVER.MAX_ITER", "8")
    assert best(out) == (3, 5.0)
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert weights(out / "model_best.pth") == weights(out / "model_0000003.pth")


def test_the_last_may_be_the_best(start, scripted) -> None:
    scripted(3.0, 4.0)
    assert best(start("SOLVER.MAX_ITER", "4")) == (3, 4.0)


@pytest.mark.parametrize("second", [4.0, 6.0])
def test_a_resumed_run_knows_the_best(start, scripted, second: float) -> None:
    scripted(5.0, second)
    out = start("SOLVER.MAX_ITER", "4")
    scripted(second, 5.5)  # what was the last evaluation is repeated
    start("--resume", "SOLVER.MAX_ITER", "6")
    assert best(out) == ((5, 5.5) if second < 5.5 else (3, 6.0))


def test_an_evaluation_that_was_not_noted_is_repeated(start, scripted) -> None:
    """Killed behind the checkpoint of iteration 4, in its evaluation."""
    scripted(5.0, 6.0)
    out = start("SOLVER.MAX_ITER", "4", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR")
    rows = (out / "metrics.json").read_text().splitlines()
    kept = [row for row in rows if json.loads(row).get("bbox/AP") != 6.0]
    (out / "metrics.json").write_text("\n".join(kept) + "\n")
    (out / "model_best.pth").unlink()
    (out / "last_checkpoint").write_text("model_0000003.pth")
    left = scripted(6.0, 5.0)
    start("--resume", "SOLVER.MAX_ITER", "6")
    assert best(out) == (3, 6.0) and not left


def test_patience_ends_the_run(start, scripted) -> None:
    left = scripted(5.0, 4.0, 3.0, 9.0)
    out = start("SOLVER.MAX_ITER", "8", "SOLVER.PATIENCE", "2")
    assert left == [9.0] and best(out) == (1, 5.0)
    assert read_checkpoint(str(out / "model_final.pth"))["iteration"] == 5
    assert "the training ends here" in (out / "log.txt").read_text()
    assert "Traceback" not in (out / "log.txt").read_text()
    before = weights(out / "model_final.pth")
    start("--resume", "SOLVER.MAX_ITER", "8", "SOLVER.PATIENCE", "2")
    assert left == [9.0] and weights(out / "model_final.pth") == before


def test_an_unknown_metric_is_named(start) -> None:
    with pytest.raises(SystemExit, match=r"BEST_METRIC is 'bbox/mAP'.* one of .*bbox/AP50"):
        start("SOLVER.MAX_ITER", "2", "TEST.BEST_METRIC", "bbox/mAP")
    with pytest.raises(SystemExit, match=r"SOLVER.PATIENCE is 3, but TEST.BEST_METRIC"):
        start("SOLVER.PATIENCE", "3", "TEST.BEST_METRIC", "")


def test_lengths_in_epochs(data_opts, tmp_path: Path) -> None:
    """Four images in batches of two: two batches an epoch."""
    opts = [*data_opts, "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "100"]
    epochs = ["SOLVER.STEPS", "(60, 80)", "SOLVER.EPOCHS", "5", "TEST.EVAL_EPOCHS", "2"]
    cfg = load_config(CONFIG, [*opts, *epochs])
    solver = (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.TEST.EVAL_PERIOD)
    assert solver == (10, (6, 8), 4)
    again = tmp_path / "config.yaml"  # as a run writes it
    again.write_text(cfg.dump())
    cfg = load_config(str(again))
    assert solver == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.TEST.EVAL_PERIOD)
    with pytest.raises(ConfigError, match=r"SOLVER.EPOCHS is -1.*give 0 or more"):
        load_config(CONFIG, [*opts, "SOLVER.EPOCHS", "-1"])
