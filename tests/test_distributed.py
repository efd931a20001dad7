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
    ("counts", "config"),
    [
        ("3,1,0,2", "onenet_fcos_R18_FPN"),
        pytest.param("1,0,0,0", "onenet_fcos_R18_FPN", marks=pytest.mark.slow),
        pytest.param("0,0,0,0", "onenet_fcos_R18_FPN", marks=pytest.mark.slow),
        pytest.param("3,1,0,2", "recommended_R18_FPN", marks=pytest.mark.slow),
        pytest.param("1,0,0,0", "recommended_R18_FPN", marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_of_the_joined_batch(counts: str, config: str, tmp_path: Path) -> None:
    results = []
    for num_workers in ("1", "2"):
        out = tmp_path / num_workers
        subprocess.run(
            [sys.executable, "-W", "ignore", str(SCRIPT), str(out), num_workers, counts, config],
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
