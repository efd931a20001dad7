"""The parts of going on where a run was cut off; tests/reliability kills whole runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils import comm

from onenet.engine.resume import (
    ResumableData,
    ResumableEvalHook,
    cut_metrics,
    share_buffers,
)
from onenet.engine.startup import _check_weights
from onenet.utils.errors import ConfigError


def drawn(seed: int, iteration: int) -> tuple[float, float]:
    """What a step draws from torch's and NumPy's generators."""
    hook = ResumableData(SimpleNamespace(seed=seed))
    hook.trainer = SimpleNamespace(iter=iteration)
    hook.before_step()
    return torch.rand(1).item(), np.random.rand()


def test_a_step_draws_by_seed_iteration_and_worker(monkeypatch) -> None:
    values = {place: drawn(*place) for place in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert len(set(values.values())) == 4
    assert drawn(0, 1) == values[0, 1]  # whatever was drawn before
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    assert drawn(0, 1) not in values.values()


def test_the_seed_goes_with_the_checkpoint() -> None:
    loader = SimpleNamespace(seed=5)
    ResumableData(loader).load_state_dict(ResumableData(SimpleNamespace(seed=9)).state_dict())
    assert loader.seed == 9


def test_another_number_of_workers_is_allowed_by_elastic(monkeypatch) -> None:
    state = ResumableData(SimpleNamespace(seed=9)).state_dict()
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    loader = SimpleNamespace(seed=5)
    with pytest.raises(ConfigError, match="had 1 workers .* now has 2, .* SOLVER.ELASTIC True"):
        ResumableData(loader).load_state_dict(state)
    assert loader.seed == 5
    ResumableData(loader, any_world_size=True).load_state_dict(state)
    assert loader.seed == 9
    ResumableData(loader).load_state_dict({"seed": 7})  # of an earlier version
    assert loader.seed == 7


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ('{"iteration": 3}\n{"iteration": 7}\n{"iteration": 8}\n', 2),
        ('{"iteration": 3}\n{"iteration": 7, "lo', 1),  # cut off
        ('{"iteration": 3}\n{"iteration": 7}', 2),  # without its end of line
        ('{"iteration": 3}\n\0\0\0\n', 1),  # after a power failure
        ('{"iteration": 3}\n7\n', 1),
        ("", 0),
    ],
)
def test_metrics_are_cut_in_place(tmp_path: Path, content: str, kept: int) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with open(path, "a") as file:  # as the trainer has it open
        cut_metrics(str(path), start_iter=8)
        file.write('{"iteration": 8}\n')
    lines = content.splitlines()[:kept]
    assert path.read_text().splitlines() == [*lines, '{"iteration": 8}']


def iterations(path: Path) -> list[int]:
    """What the file has, all of whose rows must be whole."""
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def test_metrics_of_an_earlier_run_stay(tmp_path: Path) -> None:
    """A run repeated in the same OUTPUT_DIR, then resumed: its rows are cut, not the other's."""
    path = tmp_path / "metrics.json"
    path.write_text("".join(f'{{"iteration": {i}}}\n' for i in (3, 7, 11, 3, 7)))
    cut_metrics(str(path), start_iter=4)
    assert iterations(path) == [3, 7, 11, 3]


def test_results_behind_later_losses_are_no_new_run(tmp_path: Path) -> None:
    """Detectron2 writes them so where TEST.EVAL_PERIOD is no multiple of its 20 iterations."""
    path = tmp_path / "metrics.json"
    rows = [(3, "lr"), (19, "lr"), (14, "bbox/AP"), (39, "lr"), (29, "bbox/AP")]
    path.write_text("".join(f'{{"{key}": 1, "iteration": {i}}}\n' for i, key in rows))
    cut_metrics(str(path), start_iter=30)
    assert iterations(path) == [3, 19, 14, 29]
    cut_metrics(str(path), start_iter=15)
    assert iterations(path) == [3, 14]


def test_metrics_behind_a_half_row_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 3}\n{"iter{"iteration": 7}\n{"iteration": 11}\n')
    cut_metrics(str(path), start_iter=12)
    assert iterations(path) == [3, 11]
    cut_metrics(str(path), start_iter=0)  # resumed before the first checkpoint
    assert iterations(path) == []


def test_a_new_run_removes_half_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    cut_metrics(str(path), math.inf)
    assert not path.exists()
    row = '{"iteration": 7}\n'
    for content, kept in (("", ""), (row, row), (row * 2 + row[:9], row * 2), (row[:-1], row)):
        path.write_text(content)
        cut_metrics(str(path), math.inf)
        assert path.read_text() == kept


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_main_process_reads_the_metrics(tmp_path: Path, monkeypatch, rank: int) -> None:
    """Others would read them while they are being cut; half rows are no results."""
    path, evaluated, answers = tmp_path / "metrics.json", [], []
    path.write_text('{"iteration": 3, "bbox/AP": 1}\n{"iteration": 3, "bb')
    hook = ResumableEvalHook(4, lambda: evaluated.append(1), str(path))
    hook.trainer = SimpleNamespace(start_iter=4, max_iter=8)
    monkeypatch.setattr(comm, "is_main_process", lambda: rank == 0)
    monkeypatch.setattr(comm, "all_gather", lambda answer: answers.append(answer) or [True])
    hook.before_train()
    assert answers == [rank == 0] and not evaluated


def _share(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    model = torch.nn.BatchNorm2d(3)
    model.running_mean.fill_(rank + 1)
    model.num_batches_tracked.fill_(rank + 1)
    model.weight.data.fill_(rank + 1)
    share_buffers(model)
    torch.save(model.state_dict(), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_workers_share_the_statistics_of_the_first(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_share, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        state = torch.load(tmp_path / str(rank), weights_only=True)
        assert state["running_mean"].tolist() == [1, 1, 1]
        assert state["num_batches_tracked"] == 1
        assert state["weight"].tolist() == [rank + 1] * 3  # weights are DDP's


def test_last_checkpoint_of_broken_bytes_is_named(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe\0")
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    with pytest.raises(ConfigError, match="last_checkpoint names .* there is no such file; write"):
        _check_weights(cfg, resume=True)


def test_metrics_that_are_not_there_yet(tmp_path: Path) -> None:
    cut_metrics(str(tmp_path / "metrics.json"), start_iter=8)
    assert not list(tmp_path.iterdir())
