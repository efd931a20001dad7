"""The tables of a comparison, and comparison.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .differences import evaluated_values
from .results import AS_CONFIGURED, PROGRESS, nms_words

__all__ = [
    "BIN_NAMES",
    "Table",
    "crowding_table",
    "definitions",
    "machine_sentence",
    "markdown",
    "markdown_table",
    "progress_table",
    "settings_table",
    "speed_note",
    "speed_table",
    "spread",
    "summary_table",
    "test_sets",
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
    """One row per detector; a second one with NMS off for those with NMS."""
    rows = []
    for detector in comparison["detectors"]:
        seeds = [str(s["seed"]) if s["seed"] >= 0 else "random" for s in detector["seeds"]]
        for row in _result_rows(detector, detector["aggregate"], _RESULT_COLUMNS):
            rows.append([*row, ", ".join(seeds)])
    return Table(["detector", "NMS", *(title for _, title, _ in _RESULT_COLUMNS), "seeds"], rows)


def crowding_table(comparison: dict[str, Any]) -> Table:
    """A heading and the summary's rows for each crowding bin."""
    rows: list[list[str]] = []
    detectors = comparison["detectors"]
    for name in dict.fromkeys(
        n for d in detectors for bins in d["crowding"].values() for n in bins
    ):
        counts: dict[str, None] = {}
        part = []
        for detector in detectors:
            crowding = detector["crowding"] or {AS_CONFIGURED: {}}
            bins = {variant: bins.get(name, {}) for variant, bins in crowding.items()}
            counts |= dict.fromkeys(spread(b.get("num_objects"), 0) for b in bins.values())
            part += _result_rows(detector, bins, _CROWDING_COLUMNS)
        rows += [[f"{BIN_NAMES.get(name, name)}: {' or '.join(counts)} objects"], *part]
    return Table(["detector", "NMS", *(title for _, title, _ in _CROWDING_COLUMNS)], rows)


def _result_rows(
    detector: dict[str, Any], results: dict[str, Any], columns: Sequence[tuple[str, str, int]]
) -> list[list[str]]:
    """A row for each variant of a detector; one row of dashes if there is none."""
    return [
        [
            *(detector["name"], nms_words(detector, variant) or "none"),
            *(spread(values.get(key), decimals, key) for key, _, decimals in columns),
        ]
        for variant, values in (results or {AS_CONFIGURED: {}}).items()
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


def definitions(comparison: dict[str, Any]) -> str:
    """Definitions of the columns, in sentences."""
    nms, iou = _threshold(comparison, "nms_thresh"), _threshold(comparison, "iou_thresh")
    several = any(len(detector["seeds"]) > 1 for detector in comparison["detectors"])
    spread = " Numbers are means over the seeds; where those differ, their range is given too."
    return (
        "AP and AP50 are COCO's, from 0 to 100; NMS gap is what class-wise NMS at IoU"
        f" {nms} behind the detector adds to its AP (“AP after NMS” minus AP) or to its AP50: 0"
        " means that NMS is not needed. Duplicates @t are boxes with a score of t or more, counted"
        f" per image, that lie (IoU {iou} or more, same class) only on objects which better scored"
        " boxes have found already. Score gap is how far the box that finds an object is above its"
        " best duplicate in score, on average; 1 is best." + (spread if several else "")
    )


def _threshold(comparison: dict[str, Any], key: str) -> str:
    values = evaluated_values(comparison["detectors"], key)
    differ = " (they differ: see “Not equal”)" if len(values) > 1 else ""
    return (" or ".join(map(str, values)) or DASH) + differ


def test_sets(comparison: dict[str, Any]) -> str:
    """Test datasets with their numbers of images and objects; empty if unknown."""
    found = dict.fromkeys(
        f"{evaluation.get('dataset', DASH)}, {evaluation.get('num_images', DASH)} images,"
        f" {evaluation.get('num_objects', DASH)} objects"
        for detector in comparison["detectors"]
        for seed in detector["seeds"]
        for evaluation in seed["evaluations"].values()
    )
    return "; ".join(found)


def machine_sentence(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} PyTorch threads,"
        f" {machine['gpu'] or 'no GPU'}, torch {machine['torch']}"
    )


def speed_note(comparison: dict[str, Any]) -> str:
    """How the speed was measured."""
    rounds = comparison["speed_rounds"]
    return (
        "The detectors of the first seeds, with NMS where they carry it, one image at a time,"
        f" taking turns in one process on the machine named above ({rounds} rounds"
        " after a warm-up); reading and resizing the image is not included. On another machine, or"
        " while others work on it, the numbers differ; the ratios are what to look at."
    )


def markdown(comparison: dict[str, Any]) -> str:
    """The content of comparison.md."""
    tested = test_sets(comparison)
    parts = [
        f"# {_plain(comparison['title'])}",
        f"{comparison['date']}; {machine_sentence(comparison['machine'])}."
        + (f" Tested on {_plain(tested)}." if tested else ""),
        f"    {comparison['command']}",
        *(f"**Not equal:** {_plain(sentence)}" for sentence in comparison["not_equal"]),
        markdown_table(summary_table(comparison)),
        definitions(comparison),
        "## By crowding",
        "By an object's largest IoU with another object of its class.",
        markdown_table(crowding_table(comparison)),
        "## During training",
        "As configured, NMS included where the detector has it.",
        markdown_table(progress_table(comparison)),
        "## Speed",
        markdown_table(speed_table(comparison)) if comparison["speed"] else DASH,
        speed_note(comparison),
        "## Runs",
        markdown_table(settings_table(comparison)),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """The table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"

    width = len(table.header)
    rows = [[f"**{row[0]}**"] + [""] * (width - 1) if len(row) == 1 else row for row in table.rows]
    return "\n".join([line(table.header), "|" + " --- |" * width, *map(line, rows)])


def _plain(text: str) -> str:
    """Text in one line, with HTML characters escaped."""
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
