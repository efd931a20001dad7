"""A worker that is killed: the others end within a minute, and say so."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import plants
import pytest
import short_runs

PATIENCE = 60  # seconds, what is asked for
START = 120  # seconds that two processes may take to import and set up, on a busy machine


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A training that does not end by itself, and has saved a checkpoint when it is killed."""
    return [
        *short_runs.TINY,
        *short_runs.make_set(tmp_path / "set"),
        *("SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "100000"),
        *("OUTPUT_DIR", str(tmp_path / "out")),
    ]


@contextmanager
def started(terminal: Path, words: list[str], *options: str) -> Iterator[subprocess.Popen]:
    """train_net.py, which prints to a file."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", str(short_runs.ROOT / "train_net.py")]
    with open(terminal, "wb") as file:
        process = subprocess.Popen(
            [*command, *words[:2], *options, *words[2:]],
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def workers_of(launcher: int) -> list[int]:
    """The processes that it spawned to train."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def wait_for_training(folder: Path) -> None:
    """Until steps are made: each worker has then met the other."""
    deadline = time.monotonic() + START
    metrics = folder / "metrics.json"
    while not (metrics.is_file() and metrics.stat().st_size):
        assert time.monotonic() < deadline, "the training did not start"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_the_workers_of_one_machine(words: list[str], tmp_path: Path) -> None:
    terminal = tmp_path / "terminal.txt"
    with started(terminal, words, "--num-gpus", "2", "--dist-url", "auto") as launcher:
        wait_for_training(tmp_path / "out")
        first, second = workers_of(launcher.pid)
        os.kill(second, signal.SIGKILL)
        assert launcher.wait(PATIENCE) == 1
    printed = terminal.read_text()
    (error,) = [line for line in printed.splitlines() if line.startswith("error: worker")]
    assert "worker 1 was ended by SIGKILL" in error and "--resume" in error
    assert not Path(f"/proc/{first}").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_the_workers_of_another_machine(words: list[str], tmp_path: Path) -> None:
    """What a launcher sees that has no part in the worker that is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    options = ["--num-machines", "2", "--dist-url", url, "--machine-rank"]
    files = [tmp_path / name for name in ("here.txt", "there.txt")]
    with (
        started(files[0], words, *options, "0") as here,
        started(files[1], words, *options, "1") as there,
    ):
        wait_for_training(tmp_path / "out")
        os.killpg(there.pid, signal.SIGKILL)
        assert here.wait(PATIENCE) == 1
    printed = files[0].read_text()
    (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "Another worker of this run has ended, or cannot be reached (" in error
    assert "--resume" in error


@pytest.mark.slow
def test_a_process_that_loads_images(runs, undisturbed: Path, tmp_path: Path) -> None:
    words = ("DATALOADER.NUM_WORKERS", "1")
    plant = {"before": plants.die_while_loading, "given": (3,)}
    assert runs.finish(tmp_path, *words, **plant) == 1
    error = short_runs.error_of(tmp_path)
    assert "A process that loads images has ended (DataLoader worker (pid" in error
    assert "killed by signal: Killed" in error and "DATALOADER.NUM_WORKERS" in error
    assert runs.finish(tmp_path, *words, resume=True) == 0
    ends = [short_runs.tensors(folder) for folder in (tmp_path, undisturbed)]
    assert not short_runs.differences(*ends)
