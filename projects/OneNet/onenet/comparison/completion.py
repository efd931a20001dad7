"""Training and evaluation of a plan's runs in child processes. POSIX only."""

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

from ..utils.errors import ConfigError
from ..utils.files import write_json
from .runs import Run, by_name, check_same_settings, is_done, record

__all__ = ["RunFailed", "complete_runs", "locked", "num_cores"]

_POLL_SECONDS = 0.1  # between polls of a child process
# On Linux, ends the child if its parent gets SIGKILL: the child sets its death signal, then becomes
# the command. Not a preexec_fn, which may deadlock in a process with threads.
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else it has ended already
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class RunFailed(RuntimeError):
    """Runs failed; the message has the last lines of each log."""


def complete_runs(
    runs: Sequence[Run],
    train_command: Sequence[str],
    lock: int,
    num_gpus: int | None = None,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> None:
    """Trains, resumes or evaluates the runs that are not done.

    All detectors' first seeds come first, then their second, so that an interrupted comparison has
    complete seeds. A failed run does not stop the others.

    Args:
        runs: from :func:`onenet.comparison.runs.find_runs`.
        train_command: ``[python, train_net.py]``.
        lock: of the comparison's folder, from :func:`locked`.
        num_gpus: passed to train_net.py.
        jobs: number of concurrent runs. They share the CPU's threads unless OMP_NUM_THREADS is set.
        say: prints a line for each run; called from several threads, one at a time.

    Raises:
        ConfigError: settings differ from those in run.json; nothing was started.
        RunFailed: runs failed; raised after all others are done.
    """
    for run in runs:
        check_same_settings(run)  # again: another process may have written it
    waiting = []
    for run in filter(None, chain(*zip_longest(*by_name(runs).values()))):
        if is_done(run):
            say(f"{run.title}: done already")
        else:
            waiting.append(run)
    # Options go before the overrides, which take the rest of the line
    gpus = [] if num_gpus is None else ["--num-gpus", str(num_gpus), "--dist-url", "auto"]
    failures: list[str] = []
    stop, saying = threading.Event(), threading.Lock()

    def say_alone(line: str) -> None:
        with saying:
            say(line)

    def complete(run: Run) -> None:
        what = "evaluation" if "--eval-only" in run.words else "training"
        say_alone(f"{run.title}: {what} in {run.folder} ...")
        start = time.perf_counter()
        try:
            _carry_out(run, [*train_command, *gpus, *run.words], lock, jobs, stop)
        except (RunFailed, OSError) as error:
            if not stop.is_set():
                failures.append(f"{run.title} failed: {error}")
                say_alone(f"{run.title}: failed; its log is shown at the end")
        else:
            say_alone(f"{run.title}: done in {(time.perf_counter() - start) / 60:.1f} minutes")

    pool = ThreadPoolExecutor(jobs)
    try:
        for future in as_completed([pool.submit(complete, run) for run in waiting]):
            future.result()
    finally:  # also after Ctrl-C
        stop.set()
        pool.shutdown(cancel_futures=True)
    if failures:
        count = f"{len(failures)} of {len(runs)} runs failed.\n" if len(failures) > 1 else ""
        raise RunFailed(count + "\n\n".join(failures))


def _carry_out(run: Run, command: list[str], lock: int, jobs: int, stop: threading.Event) -> None:
    """Runs the command of a run until it ends or ``stop`` is set; raises RunFailed if it failed."""
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
            pass_fds=(lock,),  # keeps the folder locked while the child runs
            start_new_session=True,  # so that its data loaders are ended with it
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
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end(process: subprocess.Popen) -> None:
    """Ends a process and its process group."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


@contextlib.contextmanager
def locked(
    output: Path, say: Callable[[str], None] = print, patience: float = 15.0
) -> Iterator[int]:
    """Creates and locks the folder of a comparison; yields the lock's file descriptor.

    Args:
        output: the folder.
        say: prints a line if the folder is locked.
        patience: seconds to wait for the lock; data loaders of a killed process hold it briefly.

    Raises:
        ConfigError: the folder is not writable, or in use by another process.
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
        deadline = None
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline is None:
                    say(f"{output} is in use by another start: waiting {patience:.0f} seconds ...")
                    deadline = time.monotonic() + patience
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{output} is in use: another start of the comparison works in it; wait for"
                        " it, end it, or give another --output."
                    ) from None
                time.sleep(0.2)
        yield file.fileno()
