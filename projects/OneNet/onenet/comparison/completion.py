"""Completes the runs of a plan in child processes: trained, continued, evaluated or skipped.

POSIX only: the folder's lock and the ending of child processes need its calls.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain, zip_longest
from pathlib import Path
from typing import IO

from ..utils.errors import ConfigError
from ..utils.files import write_json
from .runs import Run, by_name, check_same_settings, is_done, record

__all__ = ["RunFailed", "complete_runs", "locked", "num_cores"]

_POLL_SECONDS = 0.1  # between two looks at a child process
# Linux alone can end a child whose parent got SIGKILL. The child asks for that, then becomes the
# command; a preexec_fn could do it in fewer words, but may deadlock in a process with threads.
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else it has ended already
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class RunFailed(RuntimeError):
    """Some runs failed; the message has the last lines of each one's log."""


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
        runs: from :func:`onenet.comparison.runs.find_runs`.
        train_command: ``[python, train_net.py]``.
        lock: of the comparison's folder, from :func:`locked`.
        num_gpus: handed to train_net.py.
        jobs: how many run at the same time. With more than one each gets its share of the CPU's
            threads, unless OMP_NUM_THREADS says otherwise.
        say: gets a line for each run; called from other threads, but never twice at once.

    Raises:
        ConfigError: settings differ from those in run.json; nothing was started.
        RunFailed: some runs failed; raised once, when all others are done.
    """
    for run in runs:
        check_same_settings(run)  # again: the lock's last holder may have written it
    waiting: list[Run] = []
    for run in filter(None, chain(*zip_longest(*by_name(runs).values()))):
        if is_done(run):
            say(f"{run.title}: done already")
        else:
            waiting.append(run)
    ended: list[Run] = []
    failures: list[str] = []
    stop, saying = threading.Event(), threading.Lock()

    def complete(run: Run) -> None:
        what = "evaluation" if "--eval-only" in run.words else "training"
        with saying:
            say(f"{run.title}: {what} in {run.folder} ...")
        start = time.perf_counter()
        try:
            _carry_out(run, [*train_command, *_with_gpus(run.words, num_gpus)], lock, jobs, stop)
            outcome = f"done in {(time.perf_counter() - start) / 60:.1f} minutes"
        except (RunFailed, OSError) as error:
            if stop.is_set():
                return
            failures.append(f"{run.title} failed: {error}")
            outcome = "failed"
        with saying:
            ended.append(run)
            others = outcome == "failed" and len(ended) < len(waiting)
            say(f"{run.title}: {outcome}{', going on with the others' if others else ''}")

    pool = ThreadPoolExecutor(jobs)
    try:
        for future in as_completed([pool.submit(complete, run) for run in waiting]):
            future.result()
    finally:  # without delay also after Ctrl-C
        stop.set()
        pool.shutdown(cancel_futures=True)
    if failures:
        count = f"{len(failures)} of {len(runs)} runs failed.\n" if len(failures) > 1 else ""
        raise RunFailed(count + "\n\n".join(failures))


def _with_gpus(words: Sequence[str], num_gpus: int | None) -> list[str]:
    if num_gpus is None:
        return [*words]
    # The options come before the overrides, which argparse takes to the end of the line.
    return ["--num-gpus", str(num_gpus), "--dist-url", "auto", *words]


def _carry_out(run: Run, command: list[str], lock: int, jobs: int, stop: threading.Event) -> None:
    """Runs the command of a run to its end, or until ``stop`` is set.

    The child process ends when this process ends, however that comes about.

    Raises:
        RunFailed: it ended with an error, or without results.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    if not (run.folder / "run.json").is_file():
        write_json(str(run.folder / "run.json"), record(run))
    env = dict(os.environ)
    if jobs > 1:
        env.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // jobs)))
    guard = [sys.executable, "-IS", "-c", _WITH_PARENT, str(os.getpid())]
    log = run.folder / "compare.log"
    with open(log, "ab") as file:
        file.write(f"\n$ {shlex.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [*guard, *command] if sys.platform == "linux" else command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=(lock,),  # the folder stays locked for as long as anything writes into it
            start_new_session=True,  # so that its data loaders can be ended with it
        )
    while process.poll() is None:
        if stop.wait(_POLL_SECONDS):
            _end(process)
    if process.returncode != 0:
        raise RunFailed(
            f"exit code {process.returncode}; the last lines of {log}:\n"
            + "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        )
    missing = [path for path in run.outputs if not path.is_file()]
    if missing:
        raise RunFailed(f"it ended without writing {missing[0]}; see {log}.")
    write_json(str(run.folder / "done.json"), {"command": command})


def num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end(process: subprocess.Popen) -> None:
    """Ends a process and its children, which are in its process group."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
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
