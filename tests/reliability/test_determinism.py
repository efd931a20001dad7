"""The same seed gives the same weights to the bit, in processes that share nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import short_runs
from short_runs import differences, tensors


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_fresh_processes_agree(repo_root: Path, tmp_path: Path, threads: int) -> None:
    """Whatever the order of Python's sets, which each process draws anew."""
    data = short_runs.make_set(tmp_path / "set")
    outputs = [tmp_path / f"run{i}" for i in range(2)]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                repo_root / "train_net.py",
                *short_runs.TINY,
                *data,
                "SOLVER.MAX_ITER",
                "6",
            ]
            + ["OUTPUT_DIR", str(output)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(i)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for i, output in enumerate(outputs)
    ]
    for process in processes:
        error = process.communicate()[1]
        assert process.returncode == 0, error[-2000:].decode()
    found = [tensors(output) for output in outputs]
    assert len(found[0]) > 100
    assert not differences(*found)
    first, second = (
        (output / "inference" / "coco_instances_results.json").read_bytes() for output in outputs
    )
    assert first == second
