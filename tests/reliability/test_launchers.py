"""Trainings whose workers torchrun or srun starts: the weights of --num-gpus, to the bit."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import short_runs
from short_runs import ROOT, differences, tensors

TRAIN_NET = str(ROOT / "train_net.py")
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
WORDS = [
    "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "8", "TEST.EVAL_PERIOD", "4",
    "TEST.BEST_METRIC", "end_to_end/recall",
]  # fmt: skip
LIMIT = 300  # seconds, on a busy machine


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    return short_runs.make_set(tmp_path_factory.mktemp("set") / "set")


def started(*words: str, **env: str) -> subprocess.Popen:
    """A command of Python in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(*processes: subprocess.Popen) -> list[str]:
    """What they print; all have to end without an error."""
    try:
        printed = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    for process, text in zip(processes, printed, strict=True):
        assert process.returncode == 0, text[-5000:]
    return printed


@pytest.fixture(scope="module")
def spawned(data: list[str], tmp_path_factory):
    """OUTPUT_DIR of Detectron2's own launcher with N workers."""
    made: dict[int, Path] = {}

    def output(num_workers: int) -> Path:
        if num_workers not in made:
            made[num_workers] = tmp_path_factory.mktemp(f"spawned{num_workers}")
            options = ["--num-gpus", str(num_workers), "--dist-url", "auto"]
            words = [*short_runs.TINY[:2], *options, *short_runs.TINY[2:], *data, *WORDS]
            finished(started(TRAIN_NET, *words, "OUTPUT_DIR", str(made[num_workers])))
        return made[num_workers]

    return output


def training(data: list[str], output: Path) -> list[str]:
    return [*short_runs.TINY, *data, *WORDS, "OUTPUT_DIR", str(output)]


def rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def assert_same_end(output: Path, expected: Path) -> None:
    """Weights, average, optimiser, best checkpoint, detections, and the rows of metrics.json."""
    for name in ("model_final.pth", "model_best.pth"):
        assert not differences(tensors(output, name), tensors(expected, name)), name
    name = "inference/coco_instances_results.json"
    assert (output / name).read_bytes() == (expected / name).read_bytes()
    iterations = Counter(row["iteration"] for row in rows(output))
    assert iterations == Counter(row["iteration"] for row in rows(expected))
    assert set(iterations.values()) == {1}  # one worker writes
    timeless = [
        {key: str(value) for key, value in rows(folder)[-1].items() if "/" in key}
        for folder in (output, expected)
    ]
    assert timeless[0] and timeless[0] == timeless[1]


@pytest.mark.slow
def test_torchrun(data: list[str], spawned, tmp_path: Path) -> None:
    finished(started(*TORCHRUN, TRAIN_NET, *training(data, tmp_path)))
    assert_same_end(tmp_path, spawned(2))
    assert {path.name for path in tmp_path.glob("log.txt*")} == {"log.txt", "log.txt.rank1"}


@pytest.mark.slow
def test_two_machines_of_torchrun(data: list[str], spawned, tmp_path: Path) -> None:
    options = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    words = [TRAIN_NET, *training(data, tmp_path)]
    finished(*(started(*TORCHRUN, *options, "--node-rank", str(i), *words) for i in range(2)))
    assert_same_end(tmp_path, spawned(4))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_machines_of_srun(data: list[str], spawned, tmp_path: Path) -> None:
    """Its variables, on one machine."""
    env = {
        "SLURM_JOB_ID": str(free_port()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "localhost,other",
        "SLURM_LOCALID": "0", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    words = [TRAIN_NET, *training(data, tmp_path)]
    finished(*(started(*words, **env, SLURM_PROCID=str(i)) for i in range(2)))
    assert_same_end(tmp_path, spawned(2))


@pytest.mark.slow
def test_a_lost_worker_under_torchrun(data: list[str], spawned, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("dying_worker.py"))
    restarts = ["--max-restarts", "1"]
    (text,) = finished(started(*TORCHRUN, *restarts, script, *training(data, tmp_path)))
    assert "torchrun has started this job before" in text
    assert text.count("Starting training from iteration 4") == 1
    assert_same_end(tmp_path, spawned(2))


@pytest.mark.slow
def test_a_restart_leaves_another_run_alone(data: list[str], spawned, tmp_path: Path) -> None:
    """Which the first start refused; the sentence is told once."""
    before = {path: path.stat().st_mtime_ns for path in spawned(2).rglob("*")}
    words = training(data, spawned(2))
    process = started(*TORCHRUN, "--max-restarts", "2", TRAIN_NET, *words)
    text = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 1
    assert text.count("has the result of another run") == 1
    assert {path: path.stat().st_mtime_ns for path in spawned(2).rglob("*")} == before


@pytest.mark.slow
def test_another_number_of_workers(data: list[str], spawned, tmp_path: Path) -> None:
    """Refused, or with SOLVER.ELASTIC allowed."""
    for name in ("model_0000003.pth", "metrics.json"):
        (tmp_path / name).write_bytes((spawned(2) / name).read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    words = training(data, tmp_path)
    words = [TRAIN_NET, *words[:2], "--resume", *words[2:]]
    process = started(*words)
    text = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 1 and "the run had 2 workers" in text, text[-3000:]
    (text,) = finished(started(*words, "SOLVER.ELASTIC", "True"))
    assert "Starting training from iteration 4" in text
    assert [row["iteration"] for row in rows(tmp_path)][-1] == 8


@pytest.mark.slow
def test_a_machine_that_joins(data: list[str], tmp_path: Path) -> None:
    """The workers start again, twice as many, and go on; TORCHELASTIC_RESTART_COUNT stays 0."""
    options = ["--nnodes", "1:2", "--rdzv-backend", "c10d", "--rdzv-id", "job", "--max-restarts"]
    options += ["0", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    options += ["--rdzv-conf", "last_call_timeout=2"]  # seconds that it waits for the second
    words = [*TORCHRUN[:3], "1", *options, TRAIN_NET, *training(data, tmp_path / "out")]
    words += ["SOLVER.ELASTIC", "True", "SOLVER.MAX_ITER", "200", "TEST.EVAL_PERIOD", "0"]
    words += ["TEST.BEST_METRIC", "", "SOLVER.CHECKPOINT_PERIOD", "10"]
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # docs/cluster.md
    with ThreadPoolExecutor() as pool:  # reads what the first prints
        here = pool.submit(finished, started(*words, **env))
        while not (tmp_path / "out" / "model_0000009.pth").exists():
            assert not here.done(), here.result()
            time.sleep(0.1)
        finished(started(*words, **env))
        (text,) = here.result()
    assert "torchrun has started this job before" in text
    assert "World size: 1" in text and "World size: 2" in text
    iterations = [row["iteration"] for row in rows(tmp_path / "out")]
    assert iterations == sorted(set(iterations)) and iterations[-1] == 200
