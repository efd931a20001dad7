"""A job of workers that torchrun, Kubernetes or srun has started: places, and how they meet."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from detectron2.engine import DEFAULT_TIMEOUT
from torch import distributed

from ..utils.errors import ConfigError

__all__ = ["Worker", "find_worker", "meet"]

_STEPS = 1 << 31  # SLURM numbers batch scripts and interactive shells from the end of 32 bits


@dataclass(frozen=True)
class Worker:
    """A worker's place among ``world_size`` workers, ``local_size`` on each machine.

    Attributes:
        launcher: what has started it, for messages.
        master: "HOST:PORT" of the first worker.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    master: str

    def __post_init__(self) -> None:
        """Checks the layout that Detectron2's groups of a machine's workers rest on."""
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"{self.launcher}: the worker's rank is {self.rank} of {self.world_size} workers;"
                f" it has to be 0 to {self.world_size - 1}."
            )
        if self.local_size < 1 or self.world_size % self.local_size:
            raise ConfigError(
                f"{self.launcher}: {self.world_size} workers are not {self.local_size} on each"
                " machine; start the same number on all."
            )
        if self.local_size > 1 and self.rank % self.local_size != self.local_rank:
            raise ConfigError(
                f"{self.launcher}: the worker {self.rank} is number {self.local_rank} of the"
                f" {self.local_size} on its machine; number workers machine by machine (srun"
                " --distribution=block)."
            )


def find_worker(env: Mapping[str, str]) -> Worker | None:
    """This worker's place, from the variables of torchrun, a PyTorchJob or srun.

    Args:
        env: the environment.

    Returns:
        The place; None if no launcher started this process as one of several workers, as in a
        SLURM batch script or shell.

    Raises:
        ConfigError: variables are missing, or contradict each other.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        return _of_torch(env)
    return _of_srun(env)


def _of_torch(env: Mapping[str, str]) -> Worker | None:
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "RANK and WORLD_SIZE"
    if "LOCAL_RANK" not in env and env.get("WORLD_SIZE") == "1":
        return None  # a PyTorchJob of one machine
    # A PyTorchJob without torchrun has one worker a machine, and no local numbers
    local = "LOCAL_RANK" in env or "LOCAL_WORLD_SIZE" in env
    names = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    names += ["LOCAL_RANK", "LOCAL_WORLD_SIZE"] * local
    if missing := [name for name in names if not env.get(name)]:
        given = [name for name in names if name not in missing]
        raise ConfigError(
            f"The environment has {', '.join(given)}, so that this would be one of several workers,"
            f" but not {', '.join(missing)}; start with torchrun, which sets all, or unset"
            f" {', '.join(given)}."
        )
    return Worker(
        launcher,
        _number(env, "RANK"),
        _number(env, "WORLD_SIZE"),
        _number(env, "LOCAL_RANK") if local else 0,
        _number(env, "LOCAL_WORLD_SIZE") if local else 1,
        f"{env['MASTER_ADDR']}:{_number(env, 'MASTER_PORT')}",
    )


def _of_srun(env: Mapping[str, str]) -> Worker | None:
    # A batch script has variables of the job (SLURM_NTASKS, SLURM_PROCID=0), not those of a step
    num_tasks, step = env.get("SLURM_STEP_NUM_TASKS", ""), env.get("SLURM_STEP_ID", "")
    if not num_tasks.isdigit() or int(num_tasks) < 2 or "SLURM_PTY_PORT" in env:
        return None
    if not step.isdigit() or int(step) >= _STEPS:
        return None
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE", "")
    same_everywhere = re.fullmatch(r"(\d+)(\(x\d+\))?", tasks)
    if same_everywhere is None:
        raise ConfigError(
            f"srun: SLURM_STEP_TASKS_PER_NODE is '{tasks}'; start the same number of tasks on each"
            " machine, by srun --ntasks-per-node."
        )
    host = env.get("MASTER_ADDR") or _first_node(env.get("SLURM_STEP_NODELIST", ""))
    # Any port that all tasks derive alike; a machine may have several steps
    port = 20000 + (_number(env, "SLURM_JOB_ID") * 16 + int(step)) % 10000
    return Worker(
        "srun",
        _number(env, "SLURM_PROCID"),
        int(num_tasks),
        _number(env, "SLURM_LOCALID"),
        int(same_everywhere[1]),
        f"{host}:{_number(env, 'MASTER_PORT') if env.get('MASTER_PORT') else port}",
    )


def _first_node(nodes: str) -> str:
    """The first of ``gpu[07-09,12]-a,login1``: ``gpu07-a``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise ConfigError(
            "srun: SLURM_STEP_NODELIST is empty; set MASTER_ADDR to the first machine's name."
        )
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _number(env: Mapping[str, str], name: str) -> int:
    value = env.get(name, "")
    if not value.isdigit():
        raise ConfigError(f"The environment variable {name} is '{value}'; it has to be a number.")
    return int(value)


def meet(worker: Worker) -> distributed.Store:
    """Waits for all workers of this start; returns a store that is empty.

    torchrun's store outlives the workers, and still has the addresses of those before a restart. So
    the first worker names the start, and the others try that name until it answers them.
    """
    url = f"tcp://{worker.master}"
    meeting = distributed.rendezvous(url, worker.rank, worker.world_size, timeout=DEFAULT_TIMEOUT)
    store, *_ = next(meeting)
    own = uuid.uuid4().hex
    if worker.rank == 0:
        store.set("start", own)
        for rank in range(1, worker.world_size):
            other = store.get(f"{own}/{rank}").decode()  # waits
            store.set(f"{own}/{other}", "")
        return distributed.PrefixStore(own, store)
    while True:
        start = store.get("start").decode()
        store.set(f"{start}/{worker.rank}", own)
        if store.check([f"{start}/{own}"]):
            return distributed.PrefixStore(start, store)
        time.sleep(0.05)
