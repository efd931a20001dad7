"""From the files of finished runs to the content of comparison.json: results and their means."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..utils.errors import ConfigError, DataError
from ..utils.files import read_json
from .completion import num_cores
from .runs import Run, by_name, flat

__all__ = [
    "PROGRESS",
    "aggregate",
    "collect",
    "describe_machine",
    "differences",
    "evaluated_values",
    "fingerprint",
    "has_nms",
    "mean_curve",
    "read_losses",
    "read_progress",
    "variants",
]

# What a fair comparison keeps equal: these, named, and all other keys of _EQUAL_GROUPS. The test's
# dataset and thresholds are compared as the evaluation has them.
_EQUAL_KEYS = {
    "DATASETS.TRAIN": "training data",
    "SOLVER.MAX_ITER": "iterations",
    "SOLVER.IMS_PER_BATCH": "images a batch",
    "SOLVER.OPTIMIZER": "optimiser",
    "SOLVER.BASE_LR": "learning rate",
    "SOLVER.LR_SCHEDULER_NAME": "schedule",
    "MODEL.WEIGHTS": "initial weights",
    "MODEL.BACKBONE.NAME": "backbone",
    "MODEL.RESNETS.DEPTH": "backbone's depth",
    "INPUT.MIN_SIZE_TRAIN": "training size",
    "INPUT.MIN_SIZE_TEST": "test size",
    "INPUT.MAX_SIZE_TEST": "largest test size",
    "TEST.DETECTIONS_PER_IMAGE": "detections an image",
}
_EQUAL_GROUPS = (
    *("SOLVER.", "INPUT.", "TEST.END_TO_END."),
    *("MODEL.BACKBONE.", "MODEL.RESNETS.", "MODEL.FPN."),
)
_FREE_KEYS = {
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.REFERENCE_BATCH",  # has had its effect on the learning rate
    "INPUT.MASK_FORMAT",  # of masks, which no detector here uses
    "TEST.END_TO_END.ENABLED",  # the results are there
}
_MOST_SENTENCES = 10  # on other keys; the rest is named in one
_THRESHOLDS = {
    "nms_thresh": ("TEST.END_TO_END.NMS_THRESH", "IoU of the NMS put behind"),
    "iou_thresh": ("TEST.END_TO_END.IOU_THRESH", "IoU of duplicates"),
}

PROGRESS = ("AP", "AP50", "NMS_gap", "NMS_gap50")
"""What is shown of the evaluations during training."""
AS_CONFIGURED, NMS_OFF = "as_configured", "nms_off"
_FILES = {
    AS_CONFIGURED: Path("inference"),
    NMS_OFF: Path("inference", "nms_off"),
}


def has_nms(settings: dict[str, Any]) -> bool:
    """Whether a detector with these settings applies NMS: all do but OneNet without its switch."""
    model = settings["MODEL"]
    return model["META_ARCHITECTURE"] != "OneNet" or bool(model["ONENET"]["NMS_TEST"])


def variants(run: Run) -> dict[str, Path]:
    """The evaluations that a run has: ``as_configured``, and ``nms_off`` for detectors with NMS.

    Returns:
        The folder of each, which holds ``end_to_end.json`` and the detections.
    """
    folders = {name: run.folder / path for name, path in _FILES.items()}
    return {n: path for n, path in folders.items() if (path / "end_to_end.json").is_file()}


def collect(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Gathers the runs' results by detector, in the order of the plan.

    Args:
        runs: finished ones.

    Returns:
        For each detector its name, note, source, settings that matter, ``has_nms``, its ``seeds``
        (each with the full evaluation by variant), over those by variant ``aggregate`` and
        ``crowding``, and ``progress``, the evaluations during training: see :func:`aggregate`.

    Raises:
        ConfigError: a result cannot be read.
    """
    detectors = []
    for name, members in by_name(runs).items():
        first = members[0]
        seeds = [
            {
                "seed": run.seed,
                "folder": str(run.folder),
                "evaluations": {
                    variant: _read_json(path / "end_to_end.json")
                    for variant, path in variants(run).items()
                },
            }
            for run in members
        ]
        present = [v for v in _FILES if any(v in seed["evaluations"] for seed in seeds)]
        evaluations = {
            v: [s["evaluations"][v] for s in seeds if v in s["evaluations"]] for v in present
        }
        detectors.append(
            {
                "name": name,
                "note": first.entry.note,
                "source": first.entry.config or first.entry.folder,
                "overrides": list(first.entry.overrides),
                "settings": _summary(first.settings),
                "has_nms": has_nms(first.settings),
                "seeds": seeds,
                "aggregate": {v: _aggregate_results(e) for v, e in evaluations.items()},
                "crowding": {v: _aggregate_crowding(e) for v, e in evaluations.items()},
                "progress": _aggregate_progress([read_progress(run) for run in members]),
            }
        )
    return detectors


def aggregate(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and spread over the seeds that have a value.

    Args:
        values: one a seed; None where it is missing.

    Returns:
        ``mean``, ``min``, ``max``, ``sd`` (of the sample; None with one value), ``n``; None without
        any value.
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


def _aggregate_results(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    results = [evaluation.get("results") or {} for evaluation in evaluations]
    keys = dict.fromkeys(key for result in results for key in result)
    return {key: aggregate([result.get(key) for result in results]) for key in keys}


def _aggregate_crowding(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By the name of the crowding bin: as :func:`_aggregate_results`."""
    bins: dict[str, list[dict[str, Any]]] = {}
    for evaluation in evaluations:
        for part in evaluation.get("crowding") or []:
            bins.setdefault(part["name"], []).append(part)
    return {
        name: {
            key: aggregate([part.get(key) for part in parts])
            for key in dict.fromkeys(key for part in parts for key in part)
            if key != "name"
        }
        for name, parts in bins.items()
    }


def _aggregate_progress(runs: Sequence[dict[int, dict[str, float]]]) -> list[dict[str, Any]]:
    """One entry for each number of iterations at which every seed was evaluated."""
    common = set.intersection(*map(set, runs))
    return [
        {"iterations": i, **{key: aggregate([run[i][key] for run in runs]) for key in PROGRESS}}
        for i in sorted(common)
    ]


def mean_curve(detector: dict[str, Any], variant: str, name: str) -> list[float]:
    """The mean over the seeds of one of ``curves``; nan where no seed has a value, [] if absent."""
    curves = [
        (seed["evaluations"][variant].get("curves") or {}).get(name) or []
        for seed in detector["seeds"]
        if variant in seed["evaluations"]
    ]
    means = [aggregate(points) for points in zip(*curves, strict=False)]
    return [math.nan if mean is None else mean["mean"] for mean in means]


def read_losses(run: Run) -> tuple[list[int], list[float]]:
    """A run's ``total_loss`` from metrics.json: iterations and values, both possibly empty.

    An iteration that a resumed training repeated counts as it was the second time.
    """
    losses = _read_metrics(run, {"total_loss": "total_loss"})
    return list(losses), [entry["total_loss"] for entry in losses.values()]


def read_progress(run: Run) -> dict[int, dict[str, float]]:
    """What the evaluations during a run's training gave, from metrics.json.

    Returns:
        Number of iterations -> {"AP", "AP50", "NMS_gap", "NMS_gap50"}, as configured; empty where
        the run has one dataset's results under another name, or none.
    """
    names = {f"end_to_end/{key}": key for key in PROGRESS}
    return {iteration + 1: entry for iteration, entry in _read_metrics(run, names).items()}


def _read_metrics(run: Run, names: dict[str, str]) -> dict[int, dict[str, float]]:
    """Iteration -> values under their new names, of those lines that have them all; in order."""
    found = {}
    path = run.trained_in / "metrics.json"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
            iteration = int(entry["iteration"])
            found[iteration] = {new: float(entry[name]) for name, new in names.items()}
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # a line of other metrics, or one that was cut off with the training
    return dict(sorted(found.items()))


def differences(detectors: Sequence[dict[str, Any]]) -> list[str]:
    """What is not equal between the detectors though it matters: a sentence each."""
    sentences = []
    names = [detector["name"] for detector in detectors]

    def compare(what: str, values: list[Any]) -> str:
        groups: dict[str, list[str]] = {}
        for name, value in zip(names, values, strict=True):
            groups.setdefault(_shown(value), []).append(name)
        if len(groups) == 1:
            return ""
        largest = max(groups, key=lambda value: len(groups[value]))
        rest = groups.pop(largest) if len(groups[largest]) > 3 else []
        parts = [f"{value} for {', '.join(group)}" for value, group in groups.items()]
        parts += [f"{largest} for the {len(rest)} others"] if rest else []
        return f"{what}: {'; '.join(parts)}."

    def compare_key(key: str, what: str) -> str:
        return compare(what, [detector["settings"].get(key) for detector in detectors])

    for key, what in (("dataset", "test dataset"), ("num_images", "test images")):
        sentences.append(compare(what, [evaluated_values([d], key) for d in detectors]))
    for name, (key, what) in _THRESHOLDS.items():
        sentences.append(
            compare(
                what,
                [evaluated_values([d], name) or [d["settings"].get(key)] for d in detectors],
            )
        )
    sentences += [compare_key(key, what) for key, what in _EQUAL_KEYS.items()]
    treated = {*_EQUAL_KEYS, *(key for key, _ in _THRESHOLDS.values())}
    keys = sorted({key for d in detectors for key in d["settings"] if _is_equal_key(key)} - treated)
    # A key that only some have belongs to their backbone, which is compared above.
    keys = [key for key in keys if all(key in d["settings"] for d in detectors)]
    others = {key: sentence for key in keys if (sentence := compare_key(key, key))}
    sentences += [*others.values()][:_MOST_SENTENCES]
    if len(others) > _MOST_SENTENCES:
        sentences.append(f"Also different: {', '.join([*others][_MOST_SENTENCES:])}.")
    return [sentence for sentence in sentences if sentence]


def _is_equal_key(key: str) -> bool:
    return key.startswith(_EQUAL_GROUPS) and key not in _FREE_KEYS


def evaluated_values(detectors: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """The different values, of all seeds and variants, that the evaluations have for a key."""
    found = dict.fromkeys(
        evaluation.get(key)
        for detector in detectors
        for seed in detector["seeds"]
        for evaluation in seed["evaluations"].values()
    )
    return [value for value in found if value is not None]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _summary(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that :func:`differences` compares or a table shows, with flat keys."""
    without_fpn = "fpn" not in settings["MODEL"]["BACKBONE"]["NAME"]
    named = {"MODEL.META_ARCHITECTURE", "DATASETS.TEST", *_EQUAL_KEYS}
    return {
        k: v
        for k, v in flat(settings)
        if k in named or (_is_equal_key(k) and not (without_fpn and k.startswith("MODEL.FPN.")))
    }


def describe_machine() -> dict[str, Any]:
    """CPU, cores and threads that this process may use, PyTorch's version, and the GPU's name."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")  # where it exists it knows the model
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": cpu,
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def fingerprint(runs: Sequence[Run], options: dict[str, Any]) -> str:
    """A hash of all that the report shows: equal as long as it need not be written anew.

    Args:
        runs: finished ones.
        options: what else decides on the page.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for part in _parts(runs):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _parts(runs: Sequence[Run]) -> Iterator[bytes]:
    for run in runs:
        settings = {"name": run.name, "note": run.entry.note, "seed": run.seed, **run.settings}
        yield json.dumps(settings, sort_keys=True).encode()
        files = [
            folder / name
            for folder in variants(run).values()
            for name in ("end_to_end.json", "coco_instances_results.json")
        ]
        for path in [*files, run.trained_in / "metrics.json"]:
            yield path.read_bytes() if path.is_file() else b""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except DataError as error:
        raise ConfigError(f"{error}; delete it, and its run is evaluated again.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no evaluation; delete it, and its run is evaluated again.")
    return content
