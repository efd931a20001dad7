"""Completion of a plan's runs, and their report."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import ConfigError, DataError
from ..utils.files import read_json, write_json, write_whole
from .completion import complete_runs, locked
from .differences import differences
from .page import html_page, markdown_page
from .pictures import Picture, draw_detections, draw_truth, pick_records
from .plan import Plan
from .results import AS_CONFIGURED, collect, describe_machine, variant_name, variants
from .runs import Run, by_name, find_runs
from .speed import time_runs

__all__ = ["ReportOptions", "compare"]

logger = logging.getLogger(__name__)

_FILES = ("comparison.html", "comparison.md", "comparison.json")


@dataclass(frozen=True)
class ReportOptions:
    """Options of the report."""

    images: int = 6  # number of images shown
    min_score: float = 0.3  # of boxes shown
    speed_rounds: int = 20  # 0 to skip timing

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: a number is out of range.
        """
        if self.images < 0 or self.speed_rounds < 0:
            raise ConfigError("The numbers of images and of speed rounds must be 0 or greater.")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(
                f"The least score of a pictured box is {self.min_score}; give one from 0 to 1."
            )


def compare(
    plan: Plan,
    train_command: Sequence[str],
    *,
    command: str,
    options: ReportOptions | None = None,
    num_gpus: int | None = None,
    jobs: int = 1,
    write_anew: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Completes the plan's runs, and writes the report unless it is up to date.

    Locks the output folder, so that only one process at a time works in it.

    Args:
        plan: from :func:`find_plan`.
        train_command: ``[python, train_net.py]``.
        command: the command line, for the report.
        options: of the report.
        num_gpus: passed to train_net.py.
        jobs: number of concurrent trainings or evaluations.
        write_anew: whether to time the models and write the report even if nothing has changed.
        say: prints progress lines.

    Raises:
        ConfigError, DataError: see :func:`onenet.comparison.runs.find_runs` and
            :func:`onenet.comparison.completion.locked`; or ``jobs`` is below 1.
        RunFailed: some runs failed; no report is written.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; give 1 or more.")
    options = options or ReportOptions()
    runs = find_runs(plan)
    with locked(plan.output, say) as lock:
        complete_runs(runs, train_command, lock, num_gpus, jobs, say)
        detectors = collect(runs)
        mark = _fingerprint(plan.title, options, detectors, runs)
        page = plan.output / "comparison.html"
        if not write_anew and _is_up_to_date(plan.output, mark):
            say(f"Nothing to do: {page} is up to date.")
            return
        say(f"Measuring speed and writing {page} ...")
        comparison = {
            "title": plan.title,
            "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
            "command": command,
            "machine": describe_machine(),
            "options": asdict(options),
            "not_equal": differences(detectors),
            "detectors": detectors,
            "speed_rounds": options.speed_rounds,
            "fingerprint": mark,
        }
        _write_report(plan.output, comparison, [seeds[0] for seeds in by_name(runs).values()])
        say(f"Done: {page}, and beside it comparison.md and comparison.json.")


def _fingerprint(
    title: str, options: ReportOptions, detectors: Sequence[dict[str, Any]], runs: Sequence[Run]
) -> str:
    """Hash of all that the report is made from: results, and the detections that are drawn."""
    content = json.dumps([title, asdict(options), detectors], sort_keys=True)
    digest = hashlib.sha256(content.encode())
    for run in runs:
        for folder in variants(run).values():
            path = folder / "coco_instances_results.json"
            digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _is_up_to_date(output: Path, mark: str) -> bool:
    if not all((output / name).is_file() for name in _FILES):
        return False
    try:
        return read_json(output / "comparison.json")["fingerprint"] == mark
    except (DataError, KeyError, TypeError):
        return False


def _write_report(output: Path, comparison: dict[str, Any], firsts: Sequence[Run]) -> None:
    """Times the first seeds' models, draws, and writes the report; last, comparison.json."""
    detectors, options = comparison["detectors"], comparison["options"]
    configured = detectors[0]["seeds"][0]["evaluations"].get(AS_CONFIGURED, {})
    dataset = configured.get("dataset") or firsts[0].cfg.DATASETS.TEST[0]
    comparison["speed"], rows = [], []
    try:
        # Timing needs an image even if none is shown
        records = pick_records(dataset, max(options["images"], 1))
    except (DataError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        logger.warning(f"There are no pictures and no speed: {reason}")
        note = f"No pictures: the test set '{dataset}' is not there ({reason})."
    else:
        if comparison["speed_rounds"]:
            comparison["speed"] = time_runs(firsts, records, comparison["speed_rounds"])
        shown = records[: options["images"]]
        rows, note = _pictures(firsts, detectors, dataset, shown, options["min_score"])
    write_whole(str(output / "comparison.html"), html_page(comparison, rows, note).encode())
    write_whole(str(output / "comparison.md"), markdown_page(comparison).encode())
    write_json(str(output / "comparison.json"), comparison)


def _pictures(
    firsts: Sequence[Run],
    detectors: Sequence[dict[str, Any]],
    dataset: str,
    records: Sequence[dict[str, Any]],
    min_score: float,
) -> tuple[list[tuple[Picture, ...]], str]:
    """Each image's ground truth and detections, and a note on the detectors that are left out."""
    columns = [[draw_truth(record) for record in records]]
    left_out = []
    for run, detector in zip(firsts, detectors, strict=True):
        drawn = []
        for variant, folder in variants(run).items():
            evaluation = detector["seeds"][0]["evaluations"][variant]
            if evaluation.get("dataset") == dataset:
                label, iou = variant_name(detector, variant), evaluation.get("iou_thresh", 0.5)
                drawn += [draw_detections(records, dataset, folder, label, min_score, iou)]
        columns += filter(None, drawn)
        if not any(drawn):
            left_out.append(run.name)
    note = f"Without pictures, since there are no detections on {dataset}: {', '.join(left_out)}."
    return list(zip(*columns, strict=True)), note if records and left_out else ""
