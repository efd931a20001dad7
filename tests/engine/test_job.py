"""Environments of launchers, options that contradict them, and restarts; without processes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import distributed

from onenet.engine import argument_parser, elastic, launch_workers
from onenet.engine.job import Worker, find_worker, meet
from onenet.utils.errors import ConfigError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODELIST": "gpu[07-08]", "SLURM_NTASKS_PER_NODE": "2", "SLURM_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
SRUN = {
    **BATCH_SCRIPT, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


def without(env: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in names}


def test_torchrun_and_pytorchjobs() -> None:
    assert find_worker(TORCHRUN) == Worker("torchrun", 3, 4, 1, 2, "gpu1:29500")
    assert find_worker({**SRUN, **TORCHRUN}).launcher == "torchrun"  # srun torchrun
    of_pod = without(TORCHRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
    worker = find_worker(of_pod)
    assert (worker.rank, worker.world_size) == (3, 4)
    assert (worker.local_rank, worker.local_size) == (0, 1)
    alone = {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert find_worker(alone).world_size == 1  # elastic
    assert find_worker({**of_pod, "RANK": "0", "WORLD_SIZE": "1"}) is None  # --num-gpus 8 of a pod


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[07-08]", "gpu07"),
        ("gpu1,gpu[3-4]", "gpu1"),
        ("rack[2,5]n[3-4]-ib,login1", "rack2n3-ib"),
        ("localhost", "localhost"),
    ],
)
def test_srun(nodes: str, host: str) -> None:
    worker = find_worker({**SRUN, "SLURM_STEP_NODELIST": nodes})
    assert (worker.rank, worker.world_size, worker.local_rank, worker.local_size) == (3, 4, 1, 2)
    name, port = worker.master.split(":")
    assert name == host and 20000 <= int(port) < 30000
    given = {"MASTER_ADDR": "other", "MASTER_PORT": "1234"}
    assert find_worker({**SRUN, **given}).master == "other:1234"


@pytest.mark.parametrize(
    "env",
    [
        {"PATH": "/bin"},
        BATCH_SCRIPT,
        {**BATCH_SCRIPT, "SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "2"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},  # srun -n 1
        {**SRUN, "SLURM_PTY_PORT": "40123"},  # srun --pty bash
    ],
)
def test_no_launcher(env: dict[str, str]) -> None:
    assert find_worker(env) is None


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (without(TORCHRUN, "MASTER_ADDR"), "but not MASTER_ADDR; start with torchrun"),
        (without(TORCHRUN, "RANK", "MASTER_PORT"), "but not RANK, MASTER_PORT"),
        (without(TORCHRUN, "LOCAL_WORLD_SIZE"), "but not LOCAL_WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "has WORLD_SIZE, so"),
        ({**TORCHRUN, "RANK": "4"}, "rank is 4 of 4 workers"),
        ({**TORCHRUN, "RANK": "one"}, "RANK is 'one'"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "4 workers are not 3 on each machine"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, "4 workers are not 0 on each machine"),
        ({**TORCHRUN, "LOCAL_RANK": "0"}, "number 0 of the 2"),
        ({**SRUN, "SLURM_LOCALID": "0"}, "--distribution=block"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "3,1"}, "is '3,1'; .* --ntasks-per-node"),
        (without(SRUN, "SLURM_STEP_NODELIST"), "set MASTER_ADDR"),
    ],
)
def test_errors_name_the_cure(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_worker(env)


def test_workers_meet_in_a_store_with_an_earlier_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """In which its workers met, and from which they were lost."""
    store = distributed.HashStore()
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 0, 0)]))
    workers = [Worker("torchrun", rank, 3, rank, 3, "localhost:1") for rank in range(3)]
    names = []
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            met = list(pool.map(meet, reversed(workers), timeout=30))  # the first worker at last
            name = met[0].add("name", 1)
            assert name == 1 and [other.add("name", 1) for other in met[1:]] == [2, 3]
            names.append(store.get("start"))
    assert len(set(names)) == 3


def start(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], *words: str) -> list[str]:
    """Names of what runs: "main" in this process, "launch" in Detectron2's workers."""
    ran = []
    for name in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    launcher = sys.modules["onenet.engine.launch"]
    monkeypatch.setattr(launcher, "_join", lambda *_: ran.append("join"))
    monkeypatch.setattr(launcher, "launch", lambda _, gpus, **__: ran.append(f"launch {gpus}"))
    launch_workers(print, argument_parser().parse_args(list(words)))
    return ran


@pytest.mark.parametrize(
    "words",
    [
        "--num-gpus 1", "--num-gpus 4", "--num-machines 1", "--machine-rank 0", "--dist-url auto",
    ],
)  # fmt: skip
@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_contradictions(words: str, local_rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker of a machine tells."""
    env = {**TORCHRUN, "LOCAL_RANK": local_rank, "RANK": f"{2 + int(local_rank)}"}
    with pytest.raises(SystemExit) as error:
        start(monkeypatch, env, *words.split())
    option, value = words.split()
    told = f"error: {option} is {value}, but torchrun started this as one of 4 workers"
    assert error.value.code == 1 if local_rank == "1" else error.value.code.startswith(told)


def test_what_is_joined_and_what_is_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    same = "--num-gpus 2 --num-machines 2 --machine-rank 1".split()
    for env in (TORCHRUN, SRUN):
        assert start(monkeypatch, env)[0] == start(monkeypatch, env, *same)[0] == "join"
    assert start(monkeypatch, BATCH_SCRIPT, "--num-gpus", "8") == ["launch 8"]
    assert start(monkeypatch, {}) == ["launch 1"]
    # One task a machine, which spawns its workers, as Detectron2 is used on clusters
    of_machine = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    of_machine |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    words = "--num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://gpu07:1234".split()
    assert start(monkeypatch, {**SRUN, **of_machine}, *words) == ["launch 8"]
    with pytest.raises(SystemExit, match="--num-gpus is 8, but srun"):
        start(monkeypatch, {**SRUN, **of_machine}, *words[:2])


def test_a_worker_takes_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = sys.modules["onenet.engine.launch"]
    worker = find_worker(TORCHRUN)
    for count, device in ((2, 1), (8, 1), (1, 0)):  # srun --gpus-per-task=1 shows one
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert launcher._device(worker) == device
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="3 workers on a machine with 2 GPUs; start 2"):
        launcher._device(
            dataclasses.replace(worker, rank=5, world_size=6, local_rank=2, local_size=3)
        )


def restart(monkeypatch: pytest.MonkeyPatch, job: str, folder: Path, attempt: int) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
    path = folder / f"attempt_{attempt}" / "0" / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))


def test_only_the_job_that_began_a_run_goes_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", "a.yaml"])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    elastic.note_job(str(tmp_path))
    assert not elastic.goes_on(str(tmp_path)) and not list(tmp_path.iterdir())
    for job in ("none", "17"):
        restart(monkeypatch, job, tmp_path / "first", 0)
        assert not elastic.goes_on(str(tmp_path))
        elastic.note_job(str(tmp_path))
        restart(monkeypatch, job, tmp_path / "first", 1)
        assert elastic.goes_on(str(tmp_path))
        restart(monkeypatch, job, tmp_path / "second", 0)
        assert elastic.goes_on(str(tmp_path)) == (job == "17")  # its --rdzv-id was given
        restart(monkeypatch, job, tmp_path / "first", 1)
        monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", f"{job}.yaml"])
        assert not elastic.goes_on(str(tmp_path))


def test_a_users_error_ends_restarts(tmp_path: Path, monkeypatch) -> None:
    restart(monkeypatch, "none", tmp_path, 0)
    assert not elastic.cannot_start()
    elastic.refuse_restarts()
    restart(monkeypatch, "none", tmp_path, 1)
    with pytest.raises(SystemExit) as error:
        launch_workers(print, argparse.Namespace())
    assert error.value.code == 1
