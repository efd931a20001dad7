"""Completion of a plan's runs, and their report."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import ConfigError, DataError
from ..utils.files import read_json, write_json, write_whole
from . import plots
from .completion import complete_runs, locked
from .differences import differences
from .page import Gallery, html_page
from .pictures import draw_detections, draw_truth, pick_records
from .plan import Plan
from .results import (
    AS_CONFIGURED,
    collect,
    describe_machine,
    fingerprint,
    read_losses,
    variant_name,
    variants,
)
from .runs import Run, by_name, find_runs
from .speed import time_runs
from .tables import markdown

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
        plan: from :func:`read_plan` or :func:`plan_from_paths`.
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
        mark = fingerprint(runs, {"title": plan.title, **asdict(options)})
        page = plan.output / "comparison.html"
        if not write_anew and _is_up_to_date(plan.output, mark):
            say(f"Nothing to do: {page} is up to date.")
            return
        say(f"Measuring speed and writing {page} ...")
        _write_report(plan, runs, options, command, mark)
        say(f"Done: {page}, and beside it comparison.md and comparison.json.")


def _is_up_to_date(output: Path, mark: str) -> bool:
    if not all((output / name).is_file() for name in _FILES):
        return False
    try:
        return read_json(output / "comparison.json")["fingerprint"] == mark
    except (DataError, KeyError, TypeError):
        return False


def _write_report(
    plan: Plan, runs: Sequence[Run], options: ReportOptions, command: str, mark: str
) -> None:
    """Writes comparison.html, comparison.md and, last, comparison.json with its fingerprint."""
    detectors = collect(runs)
    firsts = [seeds[0] for seeds in by_name(runs).values()]
    dataset = _dataset(detectors[0]) or firsts[0].cfg.DATASETS.TEST[0]
    records, note = [], ""
    try:
        # Timing needs an image even if none is shown
        records = pick_records(dataset, max(options.images, 1))
    except (DataError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        logger.warning(f"There are no pictures and no speed: {reason}")
        note = f"No pictures: the test set '{dataset}' is not there ({reason})."
    timed = options.speed_rounds and records
    speed = time_runs(firsts, records, options.speed_rounds) if timed else []
    comparison = {
        "title": plan.title,
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "command": command,
        "machine": describe_machine(),
        "options": asdict(options),
        "not_equal": differences(detectors),
        "detectors": detectors,
        "speed": speed,
        "speed_rounds": options.speed_rounds,
        "fingerprint": mark,
    }
    pictured = records[: options.images]
    gallery = _gallery(firsts, detectors, dataset, pictured, options.min_score, note)
    losses = {name: [read_losses(run) for run in seeds] for name, seeds in by_name(runs).items()}
    drawn = {
        "ap": plots.plot_ap(detectors),
        "duplicates": plots.plot_duplicates(detectors),
        "precision": plots.plot_precision(detectors),
        "losses": plots.plot_losses(losses),
        "speed": plots.plot_speed(speed) if speed else "",
    }
    html = html_page(comparison, drawn, gallery)
    write_whole(str(plan.output / "comparison.html"), html.encode())
    write_whole(str(plan.output / "comparison.md"), markdown(comparison).encode())
    write_json(str(plan.output / "comparison.json"), comparison)


def _dataset(detector: dict[str, Any]) -> str | None:
    """Test dataset of a detector's first seed."""
    return detector["seeds"][0]["evaluations"].get(AS_CONFIGURED, {}).get("dataset")


def _gallery(
    firsts: Sequence[Run],
    detectors: Sequence[dict[str, Any]],
    dataset: str,
    records: Sequence[dict[str, Any]],
    min_score: float,
    note: str,
) -> Gallery:
    """The images with ground truth and with the boxes of each detector tested on them."""
    columns = [[draw_truth(record) for record in records]] if records else []
    left_out = []
    for run, detector in zip(firsts, detectors, strict=True):
        drawn = []
        for variant, folder in variants(run).items() if _dataset(detector) == dataset else ():
            label = variant_name(detector, variant)
            iou = detector["seeds"][0]["evaluations"][variant].get("iou_thresh") or 0.5
            drawn.append(draw_detections(records, dataset, folder, label, min_score, iou))
        columns += [column for column in drawn if column]
        if not any(drawn):
            left_out.append(run.name)
    if records and left_out:
        note = (
            f"Without pictures, since there are no detections on {dataset}: {', '.join(left_out)}."
        )
    return Gallery([list(row) for row in zip(*columns, strict=True)], min_score, note)
