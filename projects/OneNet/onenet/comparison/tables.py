"""The tables of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .results import PROGRESS, nms_words, variant_name

__all__ = [
    "BIN_NAMES",
    "Table",
    "crowding_table",
    "files_table",
    "machine_sentence",
    "markdown_table",
    "plain",
    "progress_table",
    "settings_table",
    "speed_table",
    "spread",
    "summary_table",
    "thresholds_table",
]

DASH = "–"
# Key of the results, title of the column, decimals
_RESULT_COLUMNS = (
    ("AP", "AP", 1),
    ("AP50", "AP50", 1),
    ("recall", "recall", 1),
    ("AP_after_NMS", "AP after NMS", 1),
    ("NMS_gap", "NMS gap", 1),
    ("NMS_gap50", "NMS gap of AP50", 1),
    ("duplicates@0.1", "duplicates @0.1", 2),
    ("duplicates@0.3", "duplicates @0.3", 2),
    ("duplicates@0.5", "duplicates @0.5", 2),
    ("score_gap", "score gap", 2),
)
_CROWDING_COLUMNS = tuple(c for c in _RESULT_COLUMNS if c[0] not in ("AP50", "NMS_gap50"))
BIN_NAMES = {
    "none": "touches no other of its class",
    "under_0.3": "IoU under 0.3",
    "0.3_to_0.5": "IoU 0.3 to 0.5",
    "over_0.5": "IoU over 0.5",
}


@dataclass(frozen=True)
class Table:
    """Rows of text; a row of one cell is a heading."""

    header: list[str]
    rows: list[list[str]]


def summary_table(comparison: dict[str, Any]) -> Table:
    """One row per detector; a second one with NMS off for those with NMS. An audit has no seeds."""
    rows = []
    for detector in comparison["detectors"]:
        seeds = [s["seed"] for s in detector["seeds"] if s["seed"] is not None]
        names = ", ".join(str(seed) if seed >= 0 else "random" for seed in seeds)
        for row in _result_rows(detector, detector["aggregate"], _RESULT_COLUMNS):
            rows.append([*row, *([names] if seeds else [])])
    header = ["detector", "NMS", *(title for _, title, _ in _RESULT_COLUMNS), "seeds"]
    return Table(header[: len(rows[0])], rows)


def crowding_table(comparison: dict[str, Any]) -> Table:
    """A heading for each crowding bin, and the summary's rows if it has objects."""
    rows: list[list[str]] = []
    for name, title in BIN_NAMES.items():
        part, counts = [], []
        for detector in comparison["detectors"]:
            bins = {variant: bins.get(name, {}) for variant, bins in detector["crowding"].items()}
            counts += [spread(b.get("num_objects"), 0) for b in bins.values()]
            part += _result_rows(detector, bins, _CROWDING_COLUMNS)
        rows.append([f"{title}: {' or '.join(dict.fromkeys(counts))} objects"])
        rows += part if set(counts) != {"0"} else []
    return Table(["detector", "NMS", *(title for _, title, _ in _CROWDING_COLUMNS)], rows)


def _result_rows(
    detector: dict[str, Any], results: dict[str, Any], columns: Sequence[tuple[str, str, int]]
) -> list[list[str]]:
    """A row for each variant of a detector."""
    without = "none" if detector["has_nms"] is False else "as in the file"
    return [
        [
            *(detector["name"], nms_words(detector, variant) or without),
            *(spread(values.get(key), decimals, key) for key, _, decimals in columns),
        ]
        for variant, values in results.items()
    ]


def progress_table(comparison: dict[str, Any]) -> Table:
    """A row for each evaluation during training."""
    rows: list[list[str]] = []
    for detector in comparison["detectors"]:
        rows.append([detector["name"]])
        for entry in detector["progress"]:
            cells = [spread(entry[key], 1, key) for key in PROGRESS]
            rows.append([str(entry["iterations"]), *cells])
    titles = {key: title for key, title, _ in _RESULT_COLUMNS}
    return Table(["iterations", *(titles[key] for key in PROGRESS)], rows)


def speed_table(comparison: dict[str, Any]) -> Table:
    """Median milliseconds per image, and the ratio to the first detector."""
    rows = [
        [s["name"], s["device"], f"{s['milliseconds']:.1f}", f"{s['ratio']:.2f}"]
        for s in comparison["speed"]
    ]
    return Table(["detector", "device", "ms an image", "ratio"], rows)


def settings_table(comparison: dict[str, Any]) -> Table:
    """Config, schedule and note of each detector."""
    rows = []
    for detector in comparison["detectors"]:
        settings = detector["settings"]
        schedule = f"{settings['SOLVER.MAX_ITER']} x {settings['SOLVER.IMS_PER_BATCH']}"
        source = " ".join([detector["source"], *detector["overrides"]])
        rows.append([detector["name"], source, schedule, detector["note"] or DASH])
    return Table(["detector", "made from", "iterations x batch", "note"], rows)


def files_table(audited: dict[str, Any]) -> Table:
    """The results files of an audit."""
    rows = [
        [detector["name"], nms_words(detector, variant) or "as in the file", path]
        for detector in audited["detectors"]
        for variant, path in detector["files"].items()
    ]
    return Table(["detector", "NMS", "file"], rows)


def thresholds_table(audited: dict[str, Any]) -> Table:
    """The score threshold of best F1 of each class, and that F1, of the files of an audit."""
    columns = {
        variant_name(detector, variant): thresholds["classes"]
        for detector in audited["detectors"]
        for variant, thresholds in detector["thresholds"].items()
    }
    rows = []
    for entries in zip(*columns.values(), strict=True):
        found = [
            DASH if e["threshold"] is None else f"{e['threshold']:.2f} ({e['f1']:.2f})"
            for e in entries
        ]
        rows.append([entries[0]["name"], str(entries[0]["num_objects"]), *found])
    return Table(["class", "objects", *columns], rows)


def machine_sentence(machine: Mapping[str, Any]) -> str:
    """What :func:`onenet.comparison.results.describe_machine` found, in one line."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} PyTorch threads,"
        f" {machine['gpu'] or 'no GPU'}, torch {machine['torch']}"
    )


def markdown_table(table: Table) -> str:
    """The table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |"

    width = len(table.header)
    rows = [[f"**{row[0]}**"] + [""] * (width - 1) if len(row) == 1 else row for row in table.rows]
    return "\n".join([line(table.header), "|" + " --- |" * width, *map(line, rows)])


def plain(text: str) -> str:
    """Text in one line of Markdown, with HTML characters escaped."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")


def spread(value: dict[str, float] | None, decimals: int, key: str = "") -> str:
    """The mean over the seeds, and the range if values differ.

    Args:
        value: "mean", "min" and "max"; None for a dash.
        decimals: of each.
        key: of the result; NMS gaps have a sign.
    """
    if value is None:
        return DASH
    sign = "+" if key.startswith("NMS_gap") else ""
    low, mean, high = (
        # + 0.0 turns -0 into 0
        f"{round(value[name], decimals) + 0.0:{sign}.{decimals}f}"
        for name in ("min", "mean", "max")
    )
    return mean if low == high else f"{mean} ({low} to {high})"
