"""Restarts by torchrun: a run goes on by itself, and a user's error ends it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from detectron2.utils import comm

from ..utils.files import write_whole

__all__ = ["cannot_start", "goes_on", "note_job", "refuse_restarts"]


def goes_on(output_dir: str) -> bool:
    """Whether the same command of the same job has begun a run in ``output_dir``.

    TORCHELASTIC_RESTART_COUNT does not tell: it stays 0 where machines come or go, and is above 0
    where the first start was refused because ``output_dir`` has another run. All workers call this.
    """
    if not (job := _job()):
        return False
    note = Path(output_dir, "elastic_job")
    same = comm.is_main_process() and note.is_file() and note.read_text(encoding="utf-8") == job
    return comm.all_gather(same)[0]


def note_job(output_dir: str) -> None:
    """Writes down which job of torchrun, if any, begins a run in ``output_dir``."""
    job = _job()
    if job and comm.is_main_process():
        write_whole(os.path.join(output_dir, "elastic_job"), job.encode())


def _job() -> str:
    """The job's id and command; "" without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if name == "none":  # no --rdzv-id was given, so each start is another job
        name = str(_folder() or "")
    return f"{name}\n{shlex.join(sys.argv)}\n" if name else ""


def refuse_restarts() -> None:
    """Makes :func:`cannot_start` True for the workers of this job and machine: a user's error."""
    if folder := _folder():
        (folder / "user_error").touch()


def cannot_start() -> bool:
    """Whether a worker of this job and machine has ended by a user's error before a restart."""
    folder = _folder()
    return folder is not None and (folder / "user_error").exists()


def _folder() -> Path | None:
    """The folder of the job's logs on this machine; torchrun's own, and another for each job."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # attempt_<n>/<local rank>/error.json
    return Path(error_file).parents[2] if error_file else None
