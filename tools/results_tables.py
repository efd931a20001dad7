#!/usr/bin/env python
"""Writes the tables of a report anew from the results that tools/compare.py has left.

python tools/results_tables.py docs/beyond_one_to_one.md

A table stands between `<!-- table: results/FILE.json KIND -->` and `<!-- end of table -->`; the
file's path is relative to the report. KIND is `summary`, `progress` (evaluations during the
training), `crowding` (by an object's largest IoU with another of its class), or `overview`, a row
for each of several files, with commas between them: FCOS beside the recommended OneNet.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onenet.utils.errors import ConfigError, exit_with_one_sentence

BLOCK = re.compile(r"(<!-- table: (\S+) (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
GROUPS = {
    "none": "touches none",
    "under_0.3": "IoU under 0.3",
    "0.3_to_0.5": "IoU 0.3 to 0.5",
    "over_0.5": "IoU over 0.5",
}


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
        ConfigError: a table is of an unknown kind, or of a file that is missing or no comparison.
    """

    def table(match: re.Match[str]) -> str:
        start, name, kind, end = match.groups()
        if kind not in KINDS:
            raise ConfigError(f"There is no table '{kind}'; choose one of {', '.join(KINDS)}.")
        try:
            files = [(folder / file).read_text(encoding="utf-8") for file in name.split(",")]
            found = [json.loads(text)["detectors"] for text in files]
            rows = [f"| {' | '.join(row)} |" for row in KINDS[kind](*found)]
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{folder / name} is no comparison.json ({error!r}).") from error
        rows.insert(1, "|" + " --- |" * rows[0].count(" | ") + " --- |")
        return start + "\n".join(rows) + "\n" + end

    return BLOCK.sub(table, text)


def summary(detectors: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Title row, then a row for each detector with NMS and without."""
    yield ["detector", "NMS", "AP", "AP50", "NMS gap", "of AP50", "duplicates @0.1", "seeds"]
    for detector, nms, metrics in _modes(detectors, "aggregate"):
        found = {name: spread(metrics[name]) for name in ("AP", "AP50")}
        gaps = [spread(metrics[name], sign="+") for name in ("NMS_gap", "NMS_gap50")]
        duplicates = spread(metrics["duplicates@0.1"], 2)
        seeds = ", ".join(str(run["seed"]) for run in detector["seeds"])
        yield [detector["name"], nms, *found.values(), *gaps, duplicates, seeds]


def progress(detectors: list[dict[str, Any]]) -> Iterator[list[str]]:
    """AP / AP50, NMS gap / NMS gap of AP50 at each evaluation; means."""
    columns = [round(step["iterations"], -1) for step in detectors[0]["progress"]]
    yield ["AP / AP50, NMS gaps after", *(f"{count:,} iterations" for count in columns)]
    for detector in detectors:
        row = [detector["name"] + (", with NMS" if detector["has_nms"] else "")]
        for step in detector["progress"]:
            means = {name: step[name]["mean"] for name in ("AP", "AP50", "NMS_gap", "NMS_gap50")}
            cell = f"{means['AP']:.1f} / {means['AP50']:.1f}"
            if not detector["has_nms"]:
                cell += f", {number(means['NMS_gap'])} / {number(means['NMS_gap50'])}"
            row.append(cell)
        yield row


def crowding(detectors: list[dict[str, Any]]) -> Iterator[list[str]]:
    """AP / recall by crowding."""
    groups = detectors[0]["crowding"]["as_configured"]
    titles = [f"{GROUPS[g]}, {groups[g]['num_objects']['mean']:.0f} objects" for g in groups]
    yield ["AP / recall", "NMS", *titles]
    for detector, nms, metrics in _modes(detectors, "crowding"):
        cells = [f"{spread(g['AP'])} / {spread(g['recall'])}" for g in metrics.values()]
        yield [detector["name"], nms, *cells]


def overview(*comparisons: list[dict[str, Any]]) -> Iterator[list[str]]:
    """AP / AP50 at the end; NMS gap / NMS gap of AP50 half way and at the end."""
    title = "tested on | iterations | FCOS with NMS: AP / AP50 | recommended, no NMS: AP / AP50"
    yield [*title.split(" | "), "NMS gaps half way", "NMS gaps at the end"]
    for detectors in comparisons:
        ours = next(d for d in detectors if "recommended" in d["name"])
        fcos = next((d for d in detectors if d["name"] == "FCOS"), None)
        steps = ours["progress"]
        aps = (
            " / ".join(spread(d["aggregate"]["as_configured"][k]) for k in ("AP", "AP50"))
            if d
            else "–"
            for d in (fcos, ours)
        )
        gaps = (
            " / ".join(number(step[k]["mean"]) for k in ("NMS_gap", "NMS_gap50"))
            for step in (steps[len(steps) // 2 - 1], steps[-1])
        )
        iterations = f"{round(steps[-1]['iterations'], -1):,}"
        yield [ours["settings"]["DATASETS.TEST"][0], iterations, *aps, *gaps]


KINDS = {"overview": overview, "summary": summary, "progress": progress, "crowding": crowding}


def _modes(detectors: list[dict[str, Any]], key: str) -> Iterator[tuple[dict, str, dict]]:
    for detector in detectors:
        with_nms = "with NMS" if detector["has_nms"] else "none"
        yield detector, with_nms, detector[key]["as_configured"]
        if "nms_off" in detector[key]:
            yield detector, "NMS off", detector[key]["nms_off"]


def spread(values: dict[str, float], digits: int = 1, sign: str = "") -> str:
    """The mean, and the range where it differs from that."""
    mean, least, most = (number(values[k], digits, sign) for k in ("mean", "min", "max"))
    return mean if least == most else f"{mean} ({least} to {most})"


def number(value: float, digits: int = 1, sign: str = "+") -> str:
    """Rounded, and never -0.0."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


if __name__ == "__main__":
    main()
