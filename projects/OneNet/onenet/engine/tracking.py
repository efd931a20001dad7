"""Metrics writers for Weights & Biases and MLflow (the key WRITERS)."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import math
import os
import re
import sys
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..utils.errors import ConfigError, StopTraining
from ..utils.files import write_whole

__all__ = ["Tracker", "tracker_classes"]

logger = logging.getLogger(__name__)

_WINDOW = 20  # of the smoothing, as in metrics.json
_MAX_PARAMS, _MAX_LENGTH = 100, 500  # of MLflow: parameters in a request, characters in a value


class Tracker(EventWriter):
    """Writes scalars to a run of a tracking library; a resumed training continues the run.

    The run is named after OUTPUT_DIR, where a file keeps its id. What the library raises does not
    end a training: it is logged, and no more is written.

    Attributes:
        package: name of the library's package.
    """

    package: str

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the config, which becomes that of the run.
        """
        self._folder = cfg.OUTPUT_DIR
        self._name = os.path.basename(os.path.abspath(cfg.OUTPUT_DIR))
        self._config = yaml.safe_load(cfg.dump())
        self._last_write = -1
        self._is_open = False

    def start(self, resume: bool) -> None:
        """Starts a run, or continues that of OUTPUT_DIR.

        Args:
            resume: whether the training was resumed.
        """
        with self._without_errors():
            note = Path(self._folder, f"{self.package}_run_id.txt")
            before = note.read_text().strip() if resume and note.is_file() else None
            run_id, self._last_write = self._open(before)
            self._is_open = True
            write_whole(str(note), run_id.encode())

    def write(self) -> None:
        """Writes the scalars that are newer than the last ones, with their iterations."""
        if not self._is_open:
            return
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(_WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write and not math.isnan(value):
                rows[iteration][name] = value
        with self._without_errors():
            for iteration in sorted(rows):
                self._log(rows[iteration], iteration)
                self._last_write = iteration

    def close(self) -> None:
        """Ends the run: as failed, if an error ends the training."""
        error = sys.exc_info()[1]
        if self._is_open:
            with self._without_errors():
                self._finish(error is not None and not isinstance(error, StopTraining))
        self._is_open = False

    @abstractmethod
    def _open(self, run_id: str | None) -> tuple[str, int]:
        """Starts a run, or continues that of ``run_id``; returns its id and last iteration."""

    @abstractmethod
    def _log(self, scalars: dict[str, float], iteration: int) -> None:
        """Writes the scalars of an iteration."""

    @abstractmethod
    def _finish(self, has_failed: bool) -> None:
        """Ends the run."""

    @contextlib.contextmanager
    def _without_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a library's own, or its network's
            self._is_open = False
            reason = " ".join(str(error).split()) or "no reason given"
            logger.warning(
                f"WRITERS: nothing more is written to {self.package}, and the training goes on:"
                f" {type(error).__name__}: {reason}"
            )


class WandbTracker(Tracker):
    """Weights & Biases; WANDB_PROJECT, WANDB_MODE and so on are its environment variables."""

    package = "wandb"

    def _open(self, run_id: str | None) -> tuple[str, int]:
        import wandb

        self._run = wandb.init(
            name=self._name,
            id=run_id,
            resume=None if run_id is None else "allow",
            config=self._config,
            dir=self._folder,
        )
        return self._run.id, self._run.step - 1  # the next step

    def _log(self, scalars: dict[str, float], iteration: int) -> None:
        self._run.log(scalars, step=iteration)

    def _finish(self, has_failed: bool) -> None:
        self._run.finish(exit_code=int(has_failed))


class MlflowTracker(Tracker):
    """MLflow; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and so on are environment variables."""

    package = "mlflow"

    def _open(self, run_id: str | None) -> tuple[str, int]:
        import mlflow

        if run_id is not None:
            mlflow.start_run(run_id=run_id)
            written = mlflow.MlflowClient().get_metric_history(run_id, "total_loss")
            return run_id, max((metric.step for metric in written), default=-1)
        run = mlflow.start_run(run_name=self._name)
        params = iter(_flat(self._config).items())
        while chunk := dict(itertools.islice(params, _MAX_PARAMS)):
            mlflow.log_params(chunk)
        return run.info.run_id, -1

    def _log(self, scalars: dict[str, float], iteration: int) -> None:
        import mlflow

        # Names of classes may have other characters
        named = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in scalars.items()}
        mlflow.log_metrics(named, step=iteration)

    def _finish(self, has_failed: bool) -> None:
        import mlflow

        mlflow.end_run("FAILED" if has_failed else "FINISHED")


_TRACKERS = {tracker.package: tracker for tracker in (WandbTracker, MlflowTracker)}


def tracker_classes(cfg: CfgNode) -> list[type[Tracker]]:
    """The classes of the writers that WRITERS names.

    Raises:
        ConfigError: a name is unknown, or its package is not installed.
    """
    for name in cfg.WRITERS:
        if name not in _TRACKERS:
            raise ConfigError(f"WRITERS names '{name}'; choose from {', '.join(_TRACKERS)}.")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of runs may bear the name
            raise ConfigError(
                f"WRITERS names {name}, which is not installed: pip install {name}, or take it out."
            )
    return [_TRACKERS[name] for name in cfg.WRITERS]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of a nested config as text, by their keys with dots."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)[:_MAX_LENGTH]
    return flat
