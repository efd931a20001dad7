"""Two gloo workers on the CPU against one process on the joined batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_workers.py")


# The second batch has objects on one worker only, the third none at all
@pytest.mark.parametrize(
    ("counts", "config", "num_pieces"),
    [
        ("3,1,0,2", "onenet_fcos_R18_FPN", 1),
        ("3,1,0,2", "onenet_fcos_R18_FPN", 2),
        pytest.param("1,0,0,0", "onenet_fcos_R18_FPN", 1, marks=pytest.mark.slow),
        pytest.param("0,0,0,0", "onenet_fcos_R18_FPN", 1, marks=pytest.mark.slow),
        pytest.param("3,1,0,2", "recommended_R18_FPN", 1, marks=pytest.mark.slow),
        pytest.param("1,0,0,0", "recommended_R18_FPN", 1, marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_of_the_joined_batch(
    counts: str, config: str, num_pieces: int, tmp_path: Path
) -> None:
    """That of the two workers may go through them in pieces (gradient accumulation)."""
    results = []
    for num_workers, pieces in (("1", "1"), ("2", str(num_pieces))):
        out = tmp_path / num_workers
        words = [str(out), num_workers, counts, config, pieces]
        subprocess.run(
            [sys.executable, "-W", "ignore", str(SCRIPT), *words],
            check=True,
            timeout=300,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # gloo also where there is a GPU
        )
        results.append(torch.load(out, weights_only=True))
    one, two = results
    for name, loss in one["losses"].items():
        torch.testing.assert_close(two["losses"][name], loss, rtol=1e-4, atol=1e-6)
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-3, atol=1e-5)
    assert any(g is not None and g.abs().sum() > 0 for g in one["gradients"].values())
