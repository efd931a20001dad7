"""The batch that fits into memory: SOLVER.IMS_PER_BATCH 0."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from tiny_runs import CONFIG, TINY

from onenet.engine import batch_size, load_config, startup
from onenet.engine.config_loading import with_batch
from onenet.utils.errors import ConfigError

AUTO = ["SOLVER.IMS_PER_BATCH", "0", "SOLVER.REFERENCE_BATCH", "8", "INPUT.MAX_SIZE_TRAIN", "64"]
LENGTHS = [
    "SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "(60, 80)", "SOLVER.WARMUP_ITERS", "10",
    "SOLVER.CHECKPOINT_PERIOD", "50", "TEST.EVAL_PERIOD", "25", "SOLVER.BASE_LR", "0.002",
]  # fmt: skip


@pytest.fixture
def cfg(data_opts) -> CfgNode:
    return load_config(CONFIG, [*data_opts, *TINY, *AUTO, *LENGTHS])


def test_as_many_images_are_seen(cfg) -> None:
    found = with_batch(cfg, 2)
    solver = found.SOLVER
    assert (solver.IMS_PER_BATCH, solver.REFERENCE_BATCH) == (2, 2)
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (400, (240, 320), 40)
    assert (solver.CHECKPOINT_PERIOD, found.TEST.EVAL_PERIOD) == (200, 100)
    assert solver.BASE_LR == pytest.approx(0.001)  # the square root of a quarter
    assert cfg.SOLVER.IMS_PER_BATCH == 0


def test_epochs_count_images(data_opts) -> None:
    opts = [*data_opts, *TINY, *AUTO, *LENGTHS, "SOLVER.EPOCHS", "5", "TEST.EVAL_EPOCHS", "2"]
    cfg = with_batch(load_config(CONFIG, opts), 2)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.TEST.EVAL_PERIOD) == (10, (6, 8), 4)


def test_batches_rise_until_the_memory_is_used(cfg) -> None:
    batches = (1, 2, 8)
    assert batch_size.largest_batch(cfg, batches, 1, math.inf) == 8
    assert batch_size.largest_batch(cfg, batches, 1, 3 * batch_size._peak_memory()) == 2
    assert batch_size.largest_batch(cfg, batches, 1, 0) == 1
    # Two workers with two pieces each have one image at a time
    pieces = cfg.clone()
    pieces.defrost()
    pieces.SOLVER.GRADIENT_ACCUMULATION_STEPS = 2
    assert batch_size.largest_batch(pieces, (4, 8), 2, 0) == 4


def test_images_are_the_largest_of_the_config(data_opts) -> None:
    opts = [*data_opts, "INPUT.MIN_SIZE_TRAIN", "(64, 96)", "INPUT.MAX_SIZE_TRAIN", "128"]
    opts += ["DATALOADER.ASPECT_RATIO_GROUPING", "True"]
    cfg = load_config(CONFIG, [*opts, "INPUT.CROP.ENABLED", "False"])
    assert batch_size._largest_input(cfg)["image"].shape == (3, 96, 128)
    cfg = load_config(CONFIG, [*opts, "INPUT.CROP.ENABLED", "True"])
    assert batch_size._largest_input(cfg)["image"].shape == (3, 128, 128)


def test_workers_share_every_batch(cfg, monkeypatch) -> None:
    tried = []
    monkeypatch.setattr(
        batch_size, "_in_child_process", lambda cfg, batches, n: tried.extend(batches)
    )
    monkeypatch.setattr(batch_size.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_size.comm, "all_gather", lambda value: [value])
    batch_size.choose_batch(cfg)
    assert tried == [2, 4, 8]
    monkeypatch.setattr(batch_size.comm, "get_world_size", lambda: 3)
    with pytest.raises(ConfigError, match=r"REFERENCE_BATCH \(8\).* multiple of 3 workers"):
        batch_size.choose_batch(cfg)


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (("SOLVER.REFERENCE_BATCH", "0"), r"REFERENCE_BATCH \(0\) to the batch"),
        (("SOLVER.REFERENCE_WORLD_SIZE", "2"), r"REFERENCE_WORLD_SIZE \(2\) to 0"),
        (("SOLVER.IMS_PER_BATCH", "-1"), "IMS_PER_BATCH is -1; give 0 or more"),
    ],
)
def test_what_cannot_be_chosen(data_opts, opts: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(CONFIG, [*data_opts, *TINY, *AUTO, *opts])


def test_a_resumed_run_keeps_its_batch(train_net, data_opts, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    words = [*data_opts, *TINY, *AUTO, "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(out)]
    monkeypatch.setattr(startup, "choose_batch", lambda cfg: 4)
    train_net("--config-file", CONFIG, *words)
    before = (out / "config.yaml").read_text()
    assert "IMS_PER_BATCH: 4" in before and "MAX_ITER: 2" in before
    assert "SOLVER.IMS_PER_BATCH 0 is replaced by 4" in (out / "log.txt").read_text()
    monkeypatch.setattr(startup, "choose_batch", lambda cfg: 1)
    train_net("--config-file", CONFIG, "--resume", *words)
    assert (out / "config.yaml").read_text() == before


@pytest.mark.slow
def test_a_process_tries_the_batches(cfg, monkeypatch) -> None:
    assert batch_size.choose_batch(cfg) == 8
    monkeypatch.setattr(batch_size, "_available_memory", lambda: 0)
    assert batch_size.choose_batch(cfg) == 1


@pytest.mark.gpu
def test_a_full_gpu_ends_the_trial(data_opts) -> None:
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(1024,)", "INPUT.MAX_SIZE_TRAIN", "1024"]
    cfg = load_config(CONFIG, [*data_opts, *TINY, *AUTO, *sizes])
    batches = [2**k for k in range(13)]
    chosen = batch_size.largest_batch(cfg, batches, 1, math.inf)
    assert 1 <= chosen < batches[-1] and torch.cuda.memory_allocated() < 2**30
