"""Timing of all detectors in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint import load_weights
from ..data.mapper import OneNetDatasetMapper
from .runs import Run

__all__ = ["WARM_UP", "build", "time_models", "time_runs"]

WARM_UP = 3  # rounds that are not counted


def build(run: Run) -> nn.Module:
    """A run's trained model, in evaluation mode, on its config's device.

    Raises:
        ConfigError: the weights are not of this model.
    """
    model = build_model(run.cfg)
    load_weights(model, str(run.weights))
    return model.eval()


def time_runs(
    runs: Sequence[Run], records: Sequence[dict[str, Any]], rounds: int = 20
) -> list[dict[str, Any]]:
    """Times the runs' models on the same images, resized by each config.

    Args:
        runs: finished runs, one for each detector.
        records: of the images, in Detectron2's format.
        rounds: number of rounds; each model gets one image per round.

    Returns:
        For each run ``name``, ``device``, ``milliseconds`` (median), ``ratio`` to the first run.
    """
    models = [build(run) for run in runs]
    mappers = [OneNetDatasetMapper(run.cfg, is_train=False) for run in runs]
    inputs = [[mapper(dict(record)) for record in records] for mapper in mappers]
    medians = [1000 * statistics.median(t) for t in time_models(models, inputs, rounds)]
    return [
        {
            "name": run.name,
            "device": str(next(model.parameters()).device.type),
            "milliseconds": median,
            "ratio": median / medians[0],
        }
        for run, model, median in zip(runs, models, medians, strict=True)
    ]


@torch.no_grad()
def time_models(
    models: Sequence[nn.Module], inputs: Sequence[Sequence[dict[str, Any]]], rounds: int
) -> list[list[float]]:
    """Seconds of each model in each round.

    The models take turns, so that changes of the machine's speed affect all of them.

    Args:
        models: in evaluation mode.
        inputs: of each model; the same images.
        rounds: number of rounds after ``WARM_UP`` others.
    """
    seconds: list[list[float]] = [[] for _ in models]
    for i in range(-WARM_UP, rounds):
        for model, images, times in zip(models, inputs, seconds, strict=True):
            _wait_for_gpu()
            start = time.perf_counter()
            model([images[i % len(images)]])
            _wait_for_gpu()
            if i >= 0:
                times.append(time.perf_counter() - start)
    return seconds


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
