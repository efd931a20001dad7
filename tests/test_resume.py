"""The parts of going on where a run was cut off; tests/reliability kills whole runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from onenet.resume import ResumableData, cut_metrics


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


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ('{"iteration": 3}\n{"iteration": 7}\n{"iteration": 8}\n', 2),
        ('{"iteration": 3}\n{"iteration": 7, "lo', 1),  # cut off
        ('{"iteration": 3}\n{"iteration": 7}', 1),  # without its end of line
        ('{"iteration": 3}\n\0\0\0\n', 1),  # after a power failure
        ('{"iteration": 9}\n{"iteration": 3}\n', 0),
        ("", 0),
    ],
)
def test_metrics_are_cut_in_place(tmp_path: Path, content: str, kept: int) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with open(path, "a") as file:  # as the trainer has it open
        cut_metrics(str(path), start_iter=8)
        file.write('{"iteration": 8}\n')
    lines = content.splitlines(keepends=True)[:kept]
    assert path.read_text() == "".join(lines) + '{"iteration": 8}\n'


def test_metrics_that_are_not_there_yet(tmp_path: Path) -> None:
    cut_metrics(str(tmp_path / "metrics.json"), start_iter=8)
    assert not list(tmp_path.iterdir())
