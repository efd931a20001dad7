"""What a run that was cut off needs to go on as if it never stopped."""

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

__all__ = ["ResumableData", "ResumableEvalHook", "cut_metrics", "end_half_row", "share_buffers"]

_OF_STEPS = 1  # tells the seeds of steps from those of samples


class ResumableData(HookBase):
    """Makes the data and random numbers of an iteration depend on seed and iteration alone.

    The seed is in the checkpoint: where SEED is not set, and one is drawn, a resumed run goes on
    with the same order of images, too.
    """

    def __init__(self, loader: TrainLoader) -> None:
        """
        Args:
            loader: of the training, not yet iterated.
        """
        self._loader = loader

    def before_train(self) -> None:
        """Has the loader begin with the batch of the first iteration."""
        self._loader.start = self.trainer.start_iter

    def before_step(self) -> None:
        """Seeds what the model draws, for instance in dropout."""
        seed_random(self._loader.seed, self.trainer.iter, comm.get_rank(), _OF_STEPS)

    def state_dict(self) -> dict[str, int]:
        """The seed."""
        return {"seed": self._loader.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes what :meth:`state_dict` gave."""
        self._loader.seed = state["seed"]


class ResumableEvalHook(hooks.EvalHook):
    """Detectron2's, which makes up for the evaluation that a run was cut off in.

    A checkpoint is saved before its evaluation, and the metrics are written some time after that.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict], metrics_file: str) -> None:
        """
        Args:
            period: iterations between evaluations; 0 for only one at the end.
            evaluate: returns the results.
            metrics_file: ``metrics.json``, cut off by :func:`cut_metrics`.
        """
        super().__init__(period, evaluate)
        self._metrics_file = metrics_file

    def before_train(self) -> None:
        """Evaluates, if the file lacks the results of the iteration before the first."""
        start, period = self.trainer.start_iter, self._period
        is_due = period > 0 and start % period == 0 and 0 < start < self.trainer.max_iter
        if not is_due:
            return
        # The file is the main process's, which others would read while it is being cut
        if comm.all_gather(comm.is_main_process() and self._has_results(start - 1))[0]:
            return
        self.trainer.storage.iter = start - 1
        self._do_eval()
        self.trainer.storage.iter = start

    def after_train(self) -> None:
        """Evaluates at the end; not, as Detectron2 does, where the last iteration failed."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()

    def _has_results(self, iteration: int) -> bool:
        # Only names of results have a slash, as in "bbox/AP".
        return any(
            row["iteration"] == iteration and "/" in "".join(row)
            for _, row in _last_run(_rows(self._metrics_file))
        )


def share_buffers(model: nn.Module) -> None:
    """Gives all workers the main process's buffers, such as batch norm's statistics.

    Each worker has statistics of its own images, and a checkpoint has the main process's: with
    these all workers evaluate the model that a resumed run would evaluate, too.

    Args:
        model: the same in all workers, but for values.
    """
    if comm.get_world_size() == 1:
        return
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved:
            values = buffer.detach().clone(memory_format=torch.contiguous_format)
            torch.distributed.broadcast(values, src=0)
            buffer.copy_(values)


_Rows = list[tuple[bytes, dict[str, Any]]]  # each as it stands in the file, and what it says


def _rows(path: str) -> _Rows:
    """The rows of metrics.json that can be read; none where there is no file."""
    if not os.path.isfile(path):
        return []
    rows: _Rows = []
    with open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):  # cut off, by a kill or a power failure
                content = json.loads(line)
                if isinstance(content, dict) and isinstance(content.get("iteration"), int):
                    rows.append((line.rstrip(b"\r\n") + b"\n", content))
    return rows


def _last_run(rows: _Rows) -> _Rows:
    """Those from the last place on where the iterations of training start anew.

    Rows of results alone do not count: they may stand behind the losses of later iterations.
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


def cut_metrics(path: str, start_iter: int) -> None:
    """Cuts off what a run will write again after it is resumed, and rows that are not whole.

    Rows of earlier runs, which the file goes on from where OUTPUT_DIR is used again, stay.

    Args:
        path: of ``metrics.json``, one iteration a line; need not exist. It is changed in place, as
            the trainer has it open.
        start_iter: the iteration that the run goes on with.
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


def end_half_row(path: str) -> None:
    """Ends the last line of a file, if it has no end, so that the next row has its own.

    Args:
        path: of ``metrics.json``; need not exist.
    """
    if not os.path.isfile(path) or not os.path.getsize(path):
        return
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
