"""The runs of a plan: trained or evaluated in subprocesses, continued, skipped, never overwritten.

Layout: ``<output>/runs/<slug>/seed<k>`` is train_net.py's OUTPUT_DIR. Before the first start it
gets ``run.json``, the resolved settings; after a success ``done.json``; ``compare.log`` has the
output. POSIX only: the folder's lock and the ending of child processes need its calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from detectron2.config import CfgNode, get_cfg

from ..config import add_onenet_config
from ..engine import load_config
from ..utils.errors import ConfigError
from ..utils.files import write_json
from .plan import Entry, Plan

__all__ = [
    "Run",
    "RunFailed",
    "complete_runs",
    "find_runs",
    "flat",
    "is_done",
    "locked",
]

# Where a result is written and on which device it is computed does not change what it means.
_NOT_COMPARED = {"OUTPUT_DIR", "MODEL.DEVICE"}
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_SECONDS = 0.1  # how often it is looked whether a run has ended


class RunFailed(RuntimeError):
    """Some runs failed; the message has the last lines of each one's log."""


@dataclass(frozen=True)
class Run:
    """One detector with one seed."""

    entry: Entry
    seed: int  # of a finished run: its config's; -1 stands for a random one
    cfg: CfgNode  # resolved
    folder: Path  # where inference/ is, or will be
    trained_in: Path  # where model_final.pth and metrics.json are, or will be
    words: tuple[str, ...]  # for train_net.py; none if there is nothing to do

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def title(self) -> str:
        """Name and seed, for messages."""
        return f"{self.name}, seed {self.seed}" if self.seed >= 0 else self.name

    @property
    def weights(self) -> Path:
        """The trained model."""
        return self.trained_in / "model_final.pth"

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved config as plain values, without OUTPUT_DIR."""
        settings = yaml.safe_load(self.cfg.dump())
        del settings["OUTPUT_DIR"]
        return settings


def find_runs(plan: Plan) -> list[Run]:
    """The runs of a plan, entry by entry and seed by seed, each with its resolved config.

    Raises:
        ConfigError, DataError: a config cannot be used (see :func:`onenet.engine.load_config`), has
            nothing to evaluate, or an earlier start used other settings for the same folder.
    """
    runs = []
    for entry in plan.entries:
        top = plan.output / "runs" / entry.slug
        found = [_finished(entry, top)] if entry.folder else _to_train(entry, plan.seeds, top)
        for run in found:
            _check_evaluation(run)
            _check_same_settings(run)
        runs += found
    return runs


def _check_evaluation(run: Run) -> None:
    """Raises if the config does not lead to the results that are compared."""
    count = len(run.cfg.DATASETS.TEST)
    if count != 1:
        raise ConfigError(
            f"{run.name}: DATASETS.TEST names {count} datasets, but a comparison is on one; name"
            " one, or give DATASETS.TEST_JSON and DATASETS.TEST_IMAGE_ROOT."
        )
    if run.words and not run.cfg.TEST.END_TO_END.ENABLED:
        raise ConfigError(
            f"{run.name}: TEST.END_TO_END.ENABLED is False, so that there are no results to"
            " compare; set it to True."
        )


def _to_train(entry: Entry, seeds: Sequence[int], top: Path) -> list[Run]:
    runs = []
    for seed in seeds:
        folder = top / f"seed{seed}"
        overrides = (*entry.overrides, "SEED", str(seed))
        cfg = load_config(entry.config, [*overrides])
        words = (
            *("--config-file", entry.config, "--resume"),
            *(*entry.overrides, "OUTPUT_DIR", str(folder), "SEED", str(seed)),
        )
        runs.append(Run(entry, seed, cfg, folder, folder, words))
    return runs


def _finished(entry: Entry, top: Path) -> Run:
    source = Path(entry.folder)
    config = str(source / "config.yaml")
    cfg = load_config(config, eval_only=True)
    if (source / "inference" / "end_to_end.json").is_file():
        return Run(entry, cfg.SEED, cfg, source, source, ())
    words = (
        *("--config-file", config, "--eval-only"),
        *("MODEL.WEIGHTS", str(source / "model_final.pth"), "OUTPUT_DIR", str(top)),
    )
    return Run(entry, cfg.SEED, cfg, top, source, words)


def is_done(run: Run) -> bool:
    """Whether a run's results are complete."""
    results = _outputs(run)
    if run.words:
        results.append(run.folder / "done.json")
    return all(path.is_file() for path in results)


def complete_runs(
    runs: Sequence[Run],
    train_command: Sequence[str],
    lock: int,
    num_gpus: int | None = None,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> None:
    """Trains, continues or evaluates those runs that are not done: each detector's first seed, then
    its second, so that a start that is cut off leaves whole seeds.

    A run that fails does not keep the others from being completed.

    Args:
        runs: from :func:`find_runs`.
        train_command: ``[python, train_net.py]``.
        lock: of the comparison's folder, from :func:`locked`.
        num_gpus: handed to train_net.py.
        jobs: how many run at the same time. With more than one each gets its share of the CPU's
            threads, unless OMP_NUM_THREADS says otherwise.
        say: gets a line for each run.

    Raises:
        ConfigError: settings differ from those in run.json; nothing was started.
        RunFailed: some runs failed; raised once, when all others are done.
    """
    for run in runs:
        _check_same_settings(run)  # again: the lock's last holder may have written it
    waiting = []
    for run in _by_seed(runs):
        if is_done(run):
            say(f"{run.title}: done already")
        else:
            waiting.append(run)
    failures: list[str] = []
    started: list[_Started] = []

    def failed(run: Run, error: Exception) -> None:
        failures.append(f"{run.title} failed: {error}")
        rest = ", going on with the others" if waiting or started else ""
        say(f"{run.title}: failed{rest}")

    try:
        while waiting or started:
            while waiting and len(started) < jobs:
                run = waiting.pop(0)
                what = "evaluation" if "--eval-only" in run.words else "training"
                say(f"{run.title}: {what} in {run.folder} ...")
                try:
                    command = [*train_command, *_with_gpus(run.words, num_gpus)]
                    started.append(_start(run, command, lock, jobs))
                except OSError as error:
                    failed(run, error)
            time.sleep(_POLL_SECONDS)
            for one in [one for one in started if one.process.poll() is not None]:
                started.remove(one)
                try:
                    _finish(one)
                except (RunFailed, OSError) as error:
                    failed(one.run, error)
                else:
                    minutes = (time.perf_counter() - one.start) / 60
                    say(f"{one.run.title}: done in {minutes:.1f} minutes")
    except BaseException:  # Ctrl-C above all
        _end([one.process for one in started])
        raise
    if failures:
        count = f"{len(failures)} of {len(runs)} runs failed.\n" if len(failures) > 1 else ""
        raise RunFailed(count + "\n\n".join(failures))


def _by_seed(runs: Sequence[Run]) -> list[Run]:
    """The first run of each name, in order, then the second of each, and so on."""
    counts: Counter[str] = Counter()
    rounds = []
    for run in runs:
        rounds.append(counts[run.name])
        counts[run.name] += 1
    order = sorted(range(len(runs)), key=rounds.__getitem__)
    return [runs[i] for i in order]


def _with_gpus(words: Sequence[str], num_gpus: int | None) -> list[str]:
    if num_gpus is None:
        return [*words]
    # The options come before the overrides, which argparse takes to the end of the line.
    return ["--num-gpus", str(num_gpus), "--dist-url", "auto", *words]


@dataclass(frozen=True)
class _Started:
    """A run whose process is under way."""

    run: Run
    command: list[str]
    process: subprocess.Popen
    start: float  # of time.perf_counter()


def _start(run: Run, command: list[str], lock: int, jobs: int) -> _Started:
    """Starts a process that ends when this process ends, however that comes about."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if not (run.folder / "run.json").is_file():
        write_json(str(run.folder / "run.json"), _record(run))
    env = dict(os.environ)
    if jobs > 1:
        env.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // jobs)))
    with open(_log(run), "ab") as file:
        file.write(f"\n$ {shlex.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=(lock,),  # the folder stays locked for as long as anything writes into it
            start_new_session=True,  # so that its data loaders can be ended with it
            preexec_fn=_end_with_parent if _LIBC else None,
        )
    return _Started(run, command, process, time.perf_counter())


def _num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _finish(started: _Started) -> None:
    """Notes that a run whose process has ended is done.

    Raises:
        RunFailed: it ended with an error, or without results.
    """
    run, log = started.run, _log(started.run)
    if started.process.returncode != 0:
        raise RunFailed(
            f"exit code {started.process.returncode}; the last lines of {log}:\n"
            + "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        )
    missing = [path for path in _outputs(run) if not path.is_file()]
    if missing:
        raise RunFailed(f"it ended without writing {missing[0]}; see {log}.")
    write_json(str(run.folder / "done.json"), {"command": started.command})


def _log(run: Run) -> Path:
    return run.folder / "compare.log"


def _outputs(run: Run) -> list[Path]:
    return [run.weights, run.folder / "inference" / "end_to_end.json"]


def _end_with_parent() -> None:
    # Nothing else ends a child whose parent got SIGKILL
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)


@contextlib.contextmanager
def locked(
    output: Path, say: Callable[[str], None] = print, patience: float = 15.0
) -> Iterator[int]:
    """Makes the folder of a comparison and holds its lock; gives the lock's file descriptor.

    Args:
        output: the folder.
        say: gets a line if the lock is not free at once.
        patience: seconds to wait for it, in which the data loaders of a killed start notice that it
            is gone.

    Raises:
        ConfigError: the folder cannot be written into, or another start works in it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = open(output / ".lock", "w")
    except OSError as error:
        raise ConfigError(
            f"--output: cannot write into {output} ({error.strerror}); give a folder that can be"
            " made and written into."
        ) from error
    with file:
        if not _try_lock(file):
            say(f"{output} is in use by another start: waiting {patience:.0f} seconds for it ...")
            deadline = time.monotonic() + patience
            while not _try_lock(file):
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{output} is in use: another start of the comparison works in it; wait for"
                        " it, end it, or give another --output."
                    )
                time.sleep(0.2)
        yield file.fileno()


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _record(run: Run) -> dict[str, Any]:
    """What ``run.json`` says: by what the run may be continued."""
    record: dict[str, Any] = {
        "config": run.entry.config or run.entry.folder,
        "overrides": list(run.entry.overrides),
        "seed": run.seed,
        "settings": run.settings,
    }
    if run.entry.folder:
        stat = run.weights.stat()
        record["weights"] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return record


def _check_same_settings(run: Run) -> None:
    """Raises if ``run.json`` has other settings than the run has now."""
    path = run.folder / "run.json"
    if not run.words:
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        old = {**old["settings"], "weights": old.get("weights", {})}
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); make it readable, or give another --output."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # not what is written
        raise ConfigError(
            f"{path} is broken; delete the folder {run.folder} to do this run anew."
        ) from error
    new = _record(run)
    new = {**new["settings"], "weights": new.get("weights", {})}
    # A key that is younger than the run had its default's effect then.
    old_values, new_values = {**_defaults(), **dict(flat(old))}, dict(flat(new))
    differing = [
        key
        for key in sorted({*old_values, *new_values} - _NOT_COMPARED)
        if old_values.get(key, _ABSENT) != new_values.get(key, _ABSENT)
    ]
    if differing:
        changes = "; ".join(
            f"{key} was {old_values.get(key, _ABSENT)!r}, now {new_values.get(key, _ABSENT)!r}"
            for key in differing[:3]
        )
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ConfigError(
            f"{run.folder} was made with other settings ({changes}{more}); give another --output,"
            " or delete that folder."
        )


def _defaults() -> dict[str, Any]:
    cfg = get_cfg()
    add_onenet_config(cfg)
    return dict(flat(yaml.safe_load(cfg.dump())))


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts, with their keys joined by dots."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
