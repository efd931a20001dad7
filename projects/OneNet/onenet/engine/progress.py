"""A progress bar on the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

from detectron2.engine import HookBase
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from .best import BestCheckpoint

__all__ = ["ProgressBar", "has_terminal"]

_LOGGERS = ("detectron2", "fvcore", "onenet")  # which write to the terminal
_METRICS = "detectron2.utils.events"  # the logger of Detectron2's lines of metrics
_WINDOW = 20  # iterations of the median loss, as in those lines


def has_terminal() -> bool:
    """Whether ``sys.stdout`` is a terminal with columns; that of a container may have none."""
    return sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0


class ProgressBar(HookBase):
    """Shows iteration, loss, best metric and time left in one line on a terminal.

    What is logged or printed meanwhile appears above it; Detectron2's lines of metrics go to the
    log file only. For the main process with a terminal (:func:`has_terminal`), before all other
    hooks: what they write after the training follows the line.
    """

    def __init__(self, best: BestCheckpoint | None = None) -> None:
        """
        Args:
            best: has the metric to show; None for none.
        """
        self._best = best
        self._shown = contextlib.ExitStack()

    def before_train(self) -> None:
        """Shows the bar, and sends output above it."""
        terminal = sys.stdout
        above = DummyTqdmFile(terminal)
        for handler in [h for name in _LOGGERS for h in logging.getLogger(name).handlers]:
            if getattr(handler, "stream", None) is terminal:
                handler.setStream(above)
                handler.addFilter(_is_no_metrics_line)
                self._shown.callback(handler.setStream, terminal)
                self._shown.callback(handler.removeFilter, _is_no_metrics_line)
        self._bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            file=terminal,
            dynamic_ncols=True,
            smoothing=0,  # the time left counts the evaluations
            miniters=1,  # one quick pair of iterations must not halve all later updates
        )
        self._shown.callback(self._bar.close)
        self._shown.enter_context(contextlib.redirect_stdout(above))
        if sys.stderr.isatty():
            self._shown.enter_context(contextlib.redirect_stderr(above))

    def after_step(self) -> None:
        """Updates the line."""
        storage, parts = self.trainer.storage, []
        if "total_loss" in storage.latest():
            parts.append(f"loss {storage.history('total_loss').median(_WINDOW):.4g}")
        if self._best is not None:
            parts.append(self._best.summary())
        self._bar.set_postfix_str(", ".join(filter(None, parts)), refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """Leaves the last line, and output as it was."""
        self._shown.close()


def _is_no_metrics_line(record: logging.LogRecord) -> bool:
    return record.name != _METRICS
