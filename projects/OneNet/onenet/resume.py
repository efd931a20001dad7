"""What a run that was cut off needs to go on as if it never stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from .data.loaders import TrainLoader, seed_random

__all__ = ["ResumableData", "ResumableEvalHook", "cut_metrics"]

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
        if not is_due or comm.all_gather(self._has_results(start - 1))[0]:
            return
        self.trainer.storage.iter = start - 1
        self._do_eval()
        self.trainer.storage.iter = start

    def after_train(self) -> None:
        """Evaluates at the end; not, as Detectron2 does, where the last iteration failed."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()

    def _has_results(self, iteration: int) -> bool:
        if not os.path.isfile(self._metrics_file):
            return False
        with open(self._metrics_file, "rb") as file:
            rows = [json.loads(line) for line in file]
        # Only names of results have a slash, as in "bbox/AP".
        return any(row["iteration"] == iteration and "/" in "".join(row) for row in rows)


def _iteration(line: bytes) -> float:
    """The iteration that a line of metrics.json is of; infinite for one that is cut off."""
    try:
        content: Any = json.loads(line)
        return float(content["iteration"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


def cut_metrics(path: str, start_iter: int) -> None:
    """Cuts off what a run will write again after it is resumed, and a line that is not whole.

    Args:
        path: of ``metrics.json``, one iteration a line; need not exist. It is cut in place, as the
            trainer has it open.
        start_iter: the iteration that the run goes on with.
    """
    if not os.path.isfile(path):
        return
    size = 0
    with open(path, "rb") as file:
        for line in file:
            if _iteration(line) >= start_iter:
                break
            size += len(line)
    os.truncate(path, size)
