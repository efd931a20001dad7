"""A worker that is killed: the others end within a minute, and say so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fault_injection
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
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    # The other worker may notice before the launcher, which then has nothing to add
    told = ("error: worker 1 was ended by SIGKILL", "error: Another worker of this run has ended")
    assert errors and all(e.startswith(told) and "--resume" in e for e in errors), printed[-3000:]
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
def test_two_workers_go_on_as_if_undisturbed(words: list[str], tmp_path: Path) -> None:
    """Each has batch norm statistics of its own, and only the first's are in a checkpoint."""
    words += ["SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "4", "TEST.EVAL_PERIOD", "4"]
    words += ["SOLVER.IMS_PER_BATCH", "4", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT"]
    words += ["0", "OUTPUT_DIR"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ["--resume", "--num-gpus", "2", "--dist-url", "auto"]
    with started(tmp_path / "whole.txt", [*words, str(whole)], *options) as launcher:
        launcher.wait(START)  # not its exit code: gloo's threads can abort a process that ends
    cut.mkdir()
    shutil.copy(whole / "model_0000007.pth", cut)
    (cut / "last_checkpoint").write_text("model_0000007.pth")
    (cut / "metrics.json").write_text('{"iteration": 7, "bbox/A')  # a row that was being written
    with started(tmp_path / "cut.txt", [*words, str(cut)], *options) as launcher:
        launcher.wait(START)
    assert not short_runs.differences(*map(short_runs.tensors, (whole, cut)))
    results = [
        {
            row["iteration"]: {key: value for key, value in row.items() if "/" in key}
            for row in map(json.loads, (folder / "metrics.json").read_text().splitlines())
        }
        for folder in (whole, cut)
    ]
    for iteration in (7, 12):  # as text, as they have nan
        assert results[0][iteration]
        assert str(results[0][iteration]) == str(results[1][iteration])


@pytest.mark.slow
def test_a_process_that_loads_images(runs, undisturbed: Path, tmp_path: Path) -> None:
    words = ("DATALOADER.NUM_WORKERS", "1")
    plant = {"before": fault_injection.die_while_loading, "given": (3,)}
    assert runs.finish(tmp_path, *words, **plant) == 1
    error = short_runs.error_of(tmp_path)
    assert "A process that loads images has ended (DataLoader worker (pid" in error
    assert "killed by signal: Killed" in error and "DATALOADER.NUM_WORKERS" in error
    assert runs.finish(tmp_path, *words, resume=True) == 0
    ends = [short_runs.tensors(folder) for folder in (tmp_path, undisturbed)]
    assert not short_runs.differences(*ends)
