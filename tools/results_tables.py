#!/usr/bin/env python
"""Writes the tables of a report anew from what tools/compare.py or the benchmarks have left.

python tools/results_tables.py docs/beyond_one_to_one.md docs/benchmark.md

A table stands between `<!-- table: results/FILE.json KIND -->` and `<!-- end of table -->`; the
file's path is relative to the report. KIND, or several with commas between them, is

* of a comparison: `crowding` (by an object's largest IoU with another of its class), or, a row for
  each test set of several files, with commas between them: `overview` (FCOS beside the recommended
  OneNet) or `detectors` (all four);
* of `onenet audit`: `audit` (the table of its page), or `crowding`;
* of tools/ablate_rescoring.py: `ablation`, of several files, too;
* of benchmarks/gpu_suite.py: `suite`;
* of benchmarks: `inference`, `parts`, `assignment`, `training_step`, `settings`, or `commands`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from onenet.comparison.results import nms_words
from onenet.comparison.tables import (
    BIN_NAMES,
    DASH,
    Table,
    markdown_table,
    spread,
    summary_table,
)
from onenet.utils.errors import ConfigError, exit_with_one_sentence

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from common import TABLES

BLOCK = re.compile(r"(<!-- table: (\S+) ([\w,]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.md")
    with exit_with_one_sentence():
        for report in parser.parse_args().reports:
            text = report.read_text(encoding="utf-8")
            report.write_text(with_tables(text, report.parent), encoding="utf-8")


def with_tables(text: str, folder: Path) -> str:
    """The report's text with its tables made anew.

    Args:
        text: the report.
        folder: where it lies.

    Raises:
        ConfigError: a table is of an unknown kind, or its file is missing or has other results.
    """

    def table(match: re.Match[str]) -> str:
        start, name, kinds, end = match.groups()
        for kind in kinds.split(","):
            if kind not in KINDS:
                raise ConfigError(f"There is no table '{kind}'; choose one of {', '.join(KINDS)}.")
        try:
            files = [(folder / file).read_text(encoding="utf-8") for file in name.split(",")]
            found = [json.loads(text) for text in files]
            made = "\n\n".join(KINDS[kind](*found) for kind in kinds.split(","))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{folder / name} has no such results ({error!r}).") from error
        return f"{start}{made}\n{end}"

    return BLOCK.sub(table, text)


def overview(*comparisons: dict[str, Any]) -> str:
    """AP / AP50 at the end; NMS gap / NMS gap of AP50 half way and at the end."""
    title = "tested on | iterations | FCOS with NMS: AP / AP50 | recommended, no NMS: AP / AP50"
    rows = []
    for comparison in comparisons:
        detectors = comparison["detectors"]
        ours = next(d for d in detectors if "recommended" in d["name"])
        fcos = next((d for d in detectors if d["name"] == "FCOS"), None)
        steps = ours["progress"]
        aps = (
            DASH if d is None else _both(d["aggregate"]["as_configured"], "AP", "AP50")
            for d in (fcos, ours)
        )
        half = [s for s in steps if abs(2 * s["iterations"] - steps[-1]["iterations"]) < 10]
        gaps = [_both({k: _mean(s[k]) for k in GAPS}, *GAPS) for s in (*half[:1], steps[-1])]
        gaps = gaps if half else [DASH, *gaps]
        iterations = f"{round(steps[-1]['iterations'], -1):,}"
        rows.append([ours["settings"]["DATASETS.TEST"][0], iterations, *aps, *gaps])
    header = [*title.split(" | "), "NMS gaps half way", "NMS gaps at the end"]
    return markdown_table(Table(header, rows))


def detectors(*comparisons: dict[str, Any]) -> str:
    """AP / AP50 of OneNet and the detectors with NMS, means over the seeds."""
    names = ("OneNet, plain", "recommended", "FCOS", "RetinaNet")
    found: dict[str, dict[str, Any]] = {}  # by test set, then by name
    for comparison in comparisons:
        for detector in comparison["detectors"]:
            tested_on = detector["settings"]["DATASETS.TEST"][0]
            found.setdefault(tested_on, {})[detector["name"].removeprefix("OneNet, ")] = detector
    rows = []
    for tested_on, by_name in found.items():
        rows.append([tested_on])
        for name in names:
            cell = DASH
            if (detector := by_name.get(name.removeprefix("OneNet, "))) is not None:
                results, seeds = detector["aggregate"]["as_configured"], len(detector["seeds"])
                cell = _both({key: _mean(results[key]) for key in ("AP", "AP50")}, "AP", "AP50")
                cell += "" if seeds == 3 else f" ({seeds} seed{'s' if seeds > 1 else ''})"
            rows[-1].append(cell)
    header = ["AP / AP50 on", *names[:2], *(f"{name} with NMS" for name in names[2:])]
    return markdown_table(Table(header, rows))


def audit(audited: dict[str, Any]) -> str:
    """AP, NMS gap, duplicates and score gap of each results file."""
    return markdown_table(summary_table(audited))


def ablation(*files: dict[str, Any]) -> str:
    """AP / AP50 of the same heads under other weights of rescoring, and the weights learnt."""
    header = ["AP / AP50 on", *files[0]["variants"], "weights learnt"]
    rows = []
    for file in files:
        cells = [_both(results, "AP", "AP50") for results in file["variants"].values()]
        seeds = list(zip(*file["learnt"], strict=True))
        learnt = ", ".join(f"{sum(weights) / len(weights):.1f}" for weights in seeds)
        rows.append([file["dataset"], *cells, learnt])
    return markdown_table(Table(header, rows))


def suite(results: dict[str, Any]) -> str:
    """How each part ended, and where."""
    rows = [
        [part["part"], part["status"], f"{part['seconds']:.0f}", part["commit"] or DASH]
        + [part["machine"]["gpu"] or "none", part["machine"]["torch"]]
        for part in results["parts"]
    ]
    return markdown_table(Table(["part", "end", "s", "commit", "GPU", "torch"], rows))


def crowding(comparison: dict[str, Any]) -> str:
    """AP / recall by crowding."""
    detectors = comparison["detectors"]
    bins = detectors[0]["crowding"]["as_configured"]
    titles = [f"{BIN_NAMES[b]}, {spread(bins[b]['num_objects'], 0)} objects" for b in bins]
    rows = [
        [detector["name"], nms_words(detector, mode) or "none"]
        + [_both(of_bin, "AP", "recall") for of_bin in of_bins.values()]
        for detector in detectors
        for mode, of_bins in detector["crowding"].items()
    ]
    return markdown_table(Table(["AP / recall", "NMS", *titles], rows))


def _both(values: dict[str, dict[str, float]], *keys: str) -> str:
    return " / ".join(spread(values[key], 1, key) for key in keys)


def _mean(value: dict[str, float]) -> dict[str, float]:
    """The same without its range."""
    return dict.fromkeys(("mean", "min", "max"), value["mean"])


GAPS = ("NMS_gap", "NMS_gap50")
KINDS = {
    **{table.__name__: table for table in (overview, detectors, audit, crowding, ablation, suite)},
    **TABLES,
}


if __name__ == "__main__":
    main()
