"""Collects the results of finished runs for comparison.json."""

from __future__ import annotations

import json
import math
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..utils.errors import ConfigError, DataError
from ..utils.files import read_json
from .completion import num_cores
from .differences import settings_that_matter
from .runs import Run, by_name

__all__ = [
    "AS_CONFIGURED",
    "NMS_OFF",
    "PROGRESS",
    "aggregate",
    "collect",
    "describe_machine",
    "has_nms",
    "mean_curve",
    "nms_words",
    "over_seeds",
    "read_progress",
    "variant_name",
    "variants",
]

PROGRESS = ("AP", "AP50", "NMS_gap", "NMS_gap50")
"""Metrics shown of evaluations during training."""
AS_CONFIGURED, NMS_OFF = "as_configured", "nms_off"
_FOLDERS = {AS_CONFIGURED: "inference", NMS_OFF: "inference/nms_off"}


def has_nms(settings: dict[str, Any]) -> bool:
    """Whether a detector with these settings applies NMS: all but OneNet without NMS_TEST."""
    model = settings["MODEL"]
    return model["META_ARCHITECTURE"] != "OneNet" or bool(model["ONENET"]["NMS_TEST"])


def nms_words(detector: dict[str, Any], variant: str) -> str:
    """Says "with NMS" or "NMS off" for a variant; empty for a detector without NMS.

    An audit does not know whether a detector has NMS (None) unless it is given both.
    """
    if not detector["has_nms"]:
        return ""
    return "NMS off" if variant == NMS_OFF else "with NMS"


def variant_name(detector: dict[str, Any], variant: str) -> str:
    """The detector's name, and :func:`nms_words` if it has NMS."""
    return ", ".join(filter(None, (detector["name"], nms_words(detector, variant))))


def variants(run: Run) -> dict[str, Path]:
    """The evaluations of a run: ``as_configured``, and ``nms_off`` for detectors with NMS.

    Returns:
        The folder of each, with ``end_to_end.json`` and the detections.
    """
    folders = {name: run.folder / path for name, path in _FOLDERS.items()}
    return {n: path for n, path in folders.items() if (path / "end_to_end.json").is_file()}


def collect(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Collects the results by detector, in the order of the plan.

    Args:
        runs: finished runs.

    Returns:
        For each detector name, note, source, settings, ``has_nms``, ``seeds`` (each with the full
        evaluation by variant), and, aggregated over the seeds by :func:`aggregate`, ``aggregate``
        and ``crowding`` by variant and ``progress``, the evaluations during training.

    Raises:
        ConfigError: a result cannot be read.
    """
    return [_detector(name, members) for name, members in by_name(runs).items()]


def _detector(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    entry, settings = runs[0].entry, runs[0].settings
    seeds = []
    for run in runs:
        evaluations = {v: _read_json(path / "end_to_end.json") for v, path in variants(run).items()}
        seeds.append({"seed": run.seed, "folder": str(run.folder), "evaluations": evaluations})
    return {
        "name": name,
        "note": entry.note,
        "source": entry.config or entry.folder,
        "overrides": list(entry.overrides),
        "settings": settings_that_matter(settings),
        "has_nms": has_nms(settings),
        "seeds": seeds,
        **over_seeds([seed["evaluations"] for seed in seeds]),
        "progress": _aggregate_progress([read_progress(run) for run in runs]),
    }


def over_seeds(seeds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Aggregates a detector's evaluations by variant, given for each seed.

    Returns:
        ``aggregate`` and ``crowding``, see :func:`collect`.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for evaluations in seeds:
        for variant, evaluation in evaluations.items():
            found.setdefault(variant, []).append(evaluation)
    return {
        "aggregate": {
            variant: _aggregate_keys([e.get("results", {}) for e in evaluations])
            for variant, evaluations in found.items()
        },
        "crowding": {v: _aggregate_crowding(evaluations) for v, evaluations in found.items()},
    }


def aggregate(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and spread over the seeds with a value.

    Args:
        values: one per seed; None if missing.

    Returns:
        ``mean``, ``min``, ``max``, ``sd`` (of the sample; None with one value), ``n``; None without
        values.
    """
    known = [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
    if not known:
        return None
    return {
        "mean": statistics.fmean(known),
        "min": min(known),
        "max": max(known),
        "sd": statistics.stdev(known) if len(known) > 1 else None,
        "n": len(known),
    }


def _aggregate_keys(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Aggregates each key over the seeds."""
    keys = dict.fromkeys(key for result in results for key in result)
    return {key: aggregate([result.get(key) for result in results]) for key in keys}


def _aggregate_crowding(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Aggregates each crowding bin over the seeds, by its name."""
    bins: dict[str, list[dict[str, Any]]] = {}
    for evaluation in evaluations:
        for part in evaluation.get("crowding", []):
            bins.setdefault(part["name"], []).append({k: v for k, v in part.items() if k != "name"})
    return {name: _aggregate_keys(parts) for name, parts in bins.items()}


def _aggregate_progress(runs: Sequence[dict[int, dict[str, float]]]) -> list[dict[str, Any]]:
    """One entry for each iteration at which all seeds were evaluated."""
    common = set.intersection(*map(set, runs))
    return [
        {"iterations": i, **{key: aggregate([run[i][key] for run in runs]) for key in PROGRESS}}
        for i in sorted(common)
    ]


def mean_curve(detector: dict[str, Any], variant: str, name: str) -> list[float]:
    """Mean over the seeds of one of ``curves``; nan where no seed has a value, [] if missing."""
    curves = [
        seed["evaluations"][variant].get("curves", {}).get(name, [])
        for seed in detector["seeds"]
        if variant in seed["evaluations"]
    ]
    means = [aggregate(points) for points in zip(*curves, strict=False)]
    return [math.nan if mean is None else mean["mean"] for mean in means]


def read_progress(run: Run) -> dict[int, dict[str, float]]:
    """Results of the evaluations during a run's training, from metrics.json.

    Returns:
        Number of iterations -> {"AP", "AP50", "NMS_gap", "NMS_gap50"}, as configured; may be empty.
        Of an iteration that was repeated after resuming, the last results are used.
    """
    found = {}
    path = run.trained_in / "metrics.json"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
            results = {key: float(entry[f"end_to_end/{key}"]) for key in PROGRESS}
            # The evaluation after the training has its number, the others that of the last step
            found[min(int(entry["iteration"]) + 1, run.cfg.SOLVER.MAX_ITER)] = results
        except (ValueError, KeyError, TypeError):
            continue  # other metrics, or a partial line
    return found


def describe_machine() -> dict[str, Any]:
    """CPU, cores and threads of this process, GPU, and PyTorch's version."""
    info = Path("/proc/cpuinfo")  # on Linux
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.is_file() else "")
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except DataError as error:
        raise ConfigError(f"{error}; delete it, and its run is evaluated again.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no evaluation; delete it, and its run is evaluated again.")
    return content
