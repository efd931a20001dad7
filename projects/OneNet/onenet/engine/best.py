"""The best checkpoint of a run, and the end of a run that gets no better."""

from __future__ import annotations

import logging
import math
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint import OneNetCheckpointer
from ..utils.errors import ConfigError, StopTraining
from .resume import result_at

__all__ = ["BEST", "BestCheckpoint"]

logger = logging.getLogger(__name__)

BEST = "model_best"  # file name without .pth


class BestCheckpoint(HookBase):
    """Saves ``model_best.pth`` after each evaluation with a new maximum of a metric.

    It belongs behind Detectron2's EvalHook and before the metrics writers. A checkpoint is saved
    before the evaluation of its iteration; when a run resumes from it, that evaluation is taken
    from ``metrics.json``, or was repeated.
    """

    def __init__(
        self,
        metric: str,
        *,
        period: int,
        patience: int,
        checkpointer: OneNetCheckpointer,
        metrics_file: str,
    ) -> None:
        """
        Args:
            metric: as in ``metrics.json``, "task/metric", such as "bbox/AP".
            period: iterations between evaluations; 0 for only one at the end.
            patience: number of evaluations without a new maximum after which the training ends; 0
                for none.
            checkpointer: of the evaluated model.
            metrics_file: ``metrics.json``, after :func:`onenet.engine.resume.cut_metrics`.
        """
        self._metric = metric
        self._period = period
        self._patience = patience
        self._checkpointer = checkpointer
        self._metrics_file = metrics_file
        self._best, self._since, self._last = -math.inf, 0, -1

    def state_dict(self) -> dict[str, Any]:
        """The maximum, the evaluations since, and the iteration of the last one."""
        keys = ("metric", "best", "since", "last")
        return dict(zip(keys, (self._metric, self._best, self._since, self._last), strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of :meth:`state_dict`, unless it is of another metric."""
        if state["metric"] == self._metric:
            self._best, self._since, self._last = state["best"], state["since"], state["last"]

    def before_train(self) -> None:
        """Looks at the evaluation of the checkpoint that the run resumes from.

        Raises:
            StopTraining: the run had ended for want of progress.
        """
        last = self.trainer.start_iter - 1
        if comm.is_main_process() and last > self._last and last not in self._evaluated().values():
            value = result_at(self._metrics_file, self._metric, last)
            if value is not None:
                self._save_if_best(value, last)
        self._look()

    def after_step(self) -> None:
        """Looks at the results after an evaluation.

        Raises:
            ConfigError: the results do not have the metric.
            StopTraining: see ``patience``.
        """
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            self._look()

    def after_train(self) -> None:
        """See :meth:`after_step`; the last evaluation is made there."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._look(may_stop=False)

    def summary(self) -> str:
        """The last value and the maximum, "bbox/AP 30.1 (best 31.2)"; "" before any evaluation."""
        if self._last < 0:
            return ""
        value, _ = self.trainer.storage.latest().get(self._metric, (None, None))
        last = "" if value is None else f" {value:.4g}"  # None where a run was just resumed
        return f"{self._metric}{last} (best {self._best:.4g})"

    def _evaluated(self) -> dict[str, int]:
        """The iteration of each result; only their names have a slash."""
        latest = self.trainer.storage.latest()
        return {key: iteration for key, (_, iteration) in latest.items() if "/" in key}

    def _look(self, may_stop: bool = True) -> None:
        evaluated = self._evaluated()  # nothing but in the main process
        new = max(evaluated.values(), default=-1)
        if new > self._last:
            if self._metric not in evaluated:
                known = ", ".join(key for key in evaluated if "-" not in key)
                raise ConfigError(
                    f"TEST.BEST_METRIC is '{self._metric}', which the results do not have;"
                    f" choose one of {known}."
                )
            self._save_if_best(self.trainer.storage.latest()[self._metric][0], new)
        is_over = may_stop and 0 < self._patience <= self._since
        if any(comm.all_gather(is_over)):
            raise StopTraining

    def _save_if_best(self, value: float, iteration: int) -> None:
        self._last = iteration
        self._since += 1
        if value > self._best:  # never for nan
            self._best, self._since = value, 0
            # The last evaluation is noted at the iteration behind the last
            trained = min(iteration, self.trainer.max_iter - 1)
            self._checkpointer.save_model(BEST, iteration=trained, metric={self._metric: value})
            logger.info(f"The best {self._metric} so far, {value:.4f}: saved {BEST}.pth.")
