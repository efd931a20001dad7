"""Resuming of interrupted runs with the same result."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

from ..data.loaders import TrainLoader, seed_random
from ..utils.errors import ConfigError

__all__ = ["ResumableData", "ResumableEvalHook", "cut_metrics", "result_at", "share_buffers"]

_OF_STEPS = 1  # distinguishes the seeds of steps from those of samples


class ResumableData(HookBase):
    """Makes data and random numbers of an iteration depend only on the seed and the iteration.

    The seed is stored in checkpoints, so that a resumed run keeps a seed that was drawn, and so is
    the number of workers, whose shares of a batch depend on it.
    """

    def __init__(self, loader: TrainLoader, any_world_size: bool = False) -> None:
        """
        Args:
            loader: the training loader, before iteration.
            any_world_size: SOLVER.ELASTIC.
        """
        self._loader = loader
        self._any_world_size = any_world_size

    def before_train(self) -> None:
        """Makes the loader start with the batch of the first iteration."""
        self._loader.start = self.trainer.start_iter

    def before_step(self) -> None:
        """Seeds the random numbers of the model, as in dropout."""
        seed_random(self._loader.seed, self.trainer.iter, comm.get_rank(), _OF_STEPS)

    def state_dict(self) -> dict[str, int]:
        """The seed and the number of workers."""
        return {"seed": self._loader.seed, "world_size": comm.get_world_size()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the result of :meth:`state_dict`.

        Raises:
            ConfigError: the number of workers is another one, without SOLVER.ELASTIC.
        """
        now = comm.get_world_size()
        before = state.get("world_size", now)  # checkpoints of earlier versions lack it
        if before != now and not self._any_world_size:
            raise ConfigError(
                f"--resume: the run had {before} workers (--num-gpus), and now has {now}, which"
                f" would change its result; start {before}, or allow it by SOLVER.ELASTIC True."
            )
        self._loader.seed = state["seed"]


class ResumableEvalHook(hooks.EvalHook):
    """Detectron2's EvalHook; on resuming, it repeats an interrupted evaluation.

    A checkpoint is saved before its evaluation, and the metrics are written later.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict], metrics_file: str) -> None:
        """
        Args:
            period: iterations between evaluations; 0 for only one at the end.
            evaluate: returns the results.
            metrics_file: ``metrics.json``, after :func:`cut_metrics`.
        """
        super().__init__(period, evaluate)
        self._metrics_file = metrics_file

    def before_train(self) -> None:
        """Evaluates if the file lacks the results of the checkpoint's iteration."""
        start, period = self.trainer.start_iter, self._period
        is_due = period > 0 and start % period == 0 and 0 < start < self.trainer.max_iter
        if not is_due:
            return
        # Only the main process reads the file, since it may be cutting it
        if comm.all_gather(comm.is_main_process() and self._has_results(start - 1))[0]:
            return
        self.trainer.storage.iter = start - 1
        self._do_eval()
        self.trainer.storage.iter = start

    def after_train(self) -> None:
        """Evaluates at the end, unless the last iteration failed."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()

    def _has_results(self, iteration: int) -> bool:
        # Only names of results have a slash, such as "bbox/AP"
        return any(
            row["iteration"] == iteration and "/" in "".join(row)
            for _, row in _last_run(_rows(self._metrics_file))
        )


def share_buffers(model: nn.Module) -> None:
    """Broadcasts the main process's buffers, such as batch norm statistics, to all workers.

    Checkpoints have the main process's statistics. So all workers evaluate the same model as a
    resumed run.

    Args:
        model: the same in all workers except for its values.
    """
    if comm.get_world_size() == 1:
        return
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved:
            values = buffer.detach().clone(memory_format=torch.contiguous_format)
            torch.distributed.broadcast(values, src=0)
            buffer.copy_(values)


_Rows = list[tuple[bytes, dict[str, Any]]]  # raw line and parsed row


def _rows(path: str) -> _Rows:
    """The readable rows of metrics.json; none if the file is missing."""
    if not os.path.isfile(path):
        return []
    rows: _Rows = []
    with open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):  # a partial row
                content = json.loads(line)
                if isinstance(content, dict) and isinstance(content.get("iteration"), int):
                    rows.append((line.rstrip(b"\r\n") + b"\n", content))
    return rows


def _last_run(rows: _Rows) -> _Rows:
    """The rows of the last run: from the last row whose iteration does not increase.

    Rows with results only are ignored: they may follow the losses of later iterations.
    """
    start, before = 0, -1
    for i, (_, row) in enumerate(rows):
        others = [key for key in row if key != "iteration"]
        if others and all("/" in key for key in others):
            continue
        if row["iteration"] <= before:
            start = i
        before = row["iteration"]
    return rows[start:]


def result_at(path: str, metric: str, iteration: int) -> float | None:
    """The value of a metric in the last run of ``metrics.json``.

    Args:
        path: of ``metrics.json``; may be missing.
        metric: such as "bbox/AP".
        iteration: of the evaluation.

    Returns:
        The value; None if it is not in the file.
    """
    for _, row in _last_run(_rows(path)):
        if row["iteration"] == iteration and metric in row:
            return float(row[metric])
    return None


def cut_metrics(path: str, start_iter: float) -> None:
    """Removes the rows that a resumed run will write again, and partial rows.

    Rows of earlier runs in the same OUTPUT_DIR stay.

    Args:
        path: of ``metrics.json``; may be missing. Changed in place, since the trainer has it open.
        start_iter: first iteration of the resumed run; inf for a new run, which keeps all rows.
    """
    if not os.path.isfile(path):
        return
    rows = _rows(path)
    last = _last_run(rows)
    kept = rows[: len(rows) - len(last)]
    kept += [row for row in last if row[1]["iteration"] < start_iter]
    content = b"".join(line for line, _ in kept)
    with open(path, "r+b") as file:
        if file.read() != content:
            file.seek(0)
            file.write(content)
            file.truncate()
