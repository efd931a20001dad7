"""Tables in Markdown of what :func:`common.record` writes; each takes files' contents."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from onenet.comparison.tables import DASH, Table, machine_sentence, markdown_table

from .parts import PARTS
from .runtimes import COMPLETE, EVERY_CANDIDATE, NETWORK

__all__ = ["TABLES"]

Content = Mapping[str, Any]
Row = Mapping[str, Any]


def inference(*contents: Content) -> str:
    """A row for each detector and runtime; OneNet with its post-processing in the graph."""
    title = "detector | weights | pixels | batch | runtime | network, ms | post-processing, ms"
    header = [*title.split(" | "), "total, ms", "ratio to FCOS with NMS", "boxes into NMS"]
    rows = [row for run in _runs(contents, "inference") for row in run["rows"]]
    complete = {_place(row) for row in rows if row["graph"] == COMPLETE and not row["failure"]}
    rows = [row for row in rows if row["graph"] != NETWORK or _place(row) not in complete]
    return markdown_table(Table(header, _side_by_side(rows, _inference_cells)))


def _place(row: Row) -> tuple[Any, ...]:
    return (*row["size"], row["batch"], row["detector"], row["runtime"])


def _inference_cells(row: Row) -> list[str]:
    name, weights = row["detector"], "random" if row["random_weights"] else "trained"
    if row["graph"] == EVERY_CANDIDATE:
        name += ", score threshold 0"
    cells = [name, weights, *_images(row), row["runtime"]]
    if row["failure"]:
        return [*cells, row["failure"], *[DASH] * 4]
    stages = [DASH, "in the graph"]
    if row["graph"] != COMPLETE:
        stages = [_ms(row["network"]), _ms(row["postprocessing"])]
    boxes = f"{row['boxes_into_nms']['median']:.0f}" if "boxes_into_nms" in row else DASH
    ratio = _spread(row["ratio"], 2) if "ratio" in row else DASH
    return [*cells, *stages, _ms(row["total"]), ratio, boxes]


def parts(*contents: Content) -> str:
    """What the parts of a detector's call take in eager mode."""
    header = ["ms, eager", "pixels", "batch", *PARTS, "share of top-k + decode, %"]
    rows = [row for run in _runs(contents, "inference") for row in run["parts"]]
    return markdown_table(Table(header, _side_by_side(rows, _parts_cells)))


def _parts_cells(row: Row) -> list[str]:
    times = [f"{x:.{_decimals(x)}f}" if x else DASH for x in row["parts"].values()]
    share = {key: 100 * value for key, value in row["top_k_share"].items()}
    return [row["detector"], *_images(row), *times, _spread(share, 2)]


def _images(row: Row) -> list[str]:
    return [f"{row['size'][0]} x {row['size'][1]}", str(row["batch"])]


def _side_by_side(rows: Iterable[Row], cells_of: Callable[[Row], list[str]]) -> list[list[str]]:
    """Rows that differ in nothing but the batch become one, with " / " between what differs."""
    groups: dict[tuple[Any, ...], list[list[str]]] = {}
    for row in rows:
        key = (*row["size"], row["detector"], row.get("runtime"), row.get("graph"))
        groups.setdefault(key, []).append(cells_of(row))
    return [
        [" / ".join(dict.fromkeys(cells)) for cells in zip(*group, strict=True)]
        for group in groups.values()
    ]


def assignment(*contents: Content) -> str:
    """The plain formula's time and memory beside OneNet's."""
    title = "images x samples x classes x objects | what | plain, ms | OneNet, ms | times faster"
    header = [*title.split(" | "), "plain, MiB", "OneNet, MiB"]
    rows = [
        [
            *(" x ".join(f"{x:,}" for x in row["shape"]), row["what"]),
            *(_ms(row["plain"]), _ms(row["onenet"]), f"{row['times_faster']['median']:.1f}"),
            *(_mib(row["plain_mib"]), _mib(row["onenet_mib"])),
        ]
        for run in _runs(contents, "assignment")
        for row in run["rows"]
    ]
    return markdown_table(Table(header, rows))


def training_step(*contents: Content) -> str:
    """Steps with a trivial loss beside those with matching and losses."""
    found = [row for run in _runs(contents, "training_step") for row in run["rows"]]
    header = ["config", "step", "trivial loss, ms", "OneNet, ms", "ratio"]
    rows = [
        [
            *(Path(row["config"]).stem, row["step"]),
            *(_ms(row["trivial"]), _ms(row["onenet"]), _spread(row["ratio"], 3)),
        ]
        for row in found
    ]
    if any("onenet_mib" in row for row in found):  # of a GPU
        header += ["trivial loss, MiB", "OneNet, MiB"]
        for cells, row in zip(rows, found, strict=True):
            cells += [_mib(row.get("trivial_mib")), _mib(row.get("onenet_mib"))]
    return markdown_table(Table(header, rows))


def settings(*contents: Content) -> str:
    """Times and memory beside those of a run's first row."""
    rows = []
    for run in _runs(contents, "settings"):
        for i, row in enumerate(run["rows"]):
            times = [_ms(row["milliseconds"]), _spread(row["ratio"], 2)]
            rows.append(["" if i else run["title"], row["what"], *times, _mib(row.get("mib"))])
    header = ["what", "how", "ms", "ratio to the first", "peak, MiB"]
    return markdown_table(Table(header, rows))


def exported_files(*contents: Content) -> str:
    """AP, and latency as ratios, of each file in each engine."""
    rows = [row for run in _runs(contents, "exported_files") for row in run["rows"]]
    settings = dict.fromkeys((r["pixels"], r["threads"]) for r in rows if "pixels" in r)
    places = {(row["file"], row["engine"]): f"{row['size'] / 2**20:.1f}" for row in rows}
    names = list(dict.fromkeys(name for place in places for name in place))
    cells = {}
    for row in rows:
        key = (row["file"], row["engine"])
        setting = (row["pixels"], row["threads"]) if "pixels" in row else ("AP",)
        cells[(*key, *setting)] = _file_cell(row)
    header = ["file", "engine", "MiB", "AP"]
    header += [f"{pixels}, {n} thread{'s' if n > 1 else ''}" for pixels, n in settings]
    body = [
        [*key, size, *(cells.get((*key, *s), DASH) for s in (("AP",), *settings))]
        for key, size in sorted(places.items(), key=lambda item: [*map(names.index, item[0])])
    ]
    return markdown_table(Table(header, body))


def _file_cell(row: Row) -> str:
    if "failure" in row:
        return row["failure"]
    if "ap" in row:
        return ", ".join(f"{ap:.2f}" for ap in row["ap"].values())
    is_first = row["ratio"]["lower"] == row["ratio"]["upper"] == 1
    return f"1 ({_ms(row['time'])} ms)" if is_first else _spread(row["ratio"], 2)


def commands(*contents: Content) -> str:
    """The commands behind a file's numbers, and where and when they ran."""
    runs = _runs(contents)
    lines = []
    for run in runs:
        words = re.sub(r" --json \S+", "", run["command"])
        wrapped = textwrap.wrap(words, 118, break_long_words=False, break_on_hyphens=False)
        lines.append(" \\\n    ".join(wrapped))
    facts = dict.fromkeys(
        f"Commit {run['commit']}, {run['date'].split()[0]}; {machine_sentence(run['machine'])}."
        for run in runs
    )
    return "\n".join(["```", *lines, "```", *facts])


def _runs(contents: Iterable[Content], benchmark: str | None = None) -> list[Mapping[str, Any]]:
    """Of one benchmark, or all."""
    runs = [run for content in contents for run in content["runs"]]
    return [run for run in runs if benchmark in (None, run["benchmark"])]


def _ms(values: Mapping[str, float]) -> str:
    return f"{values['median']:.{_decimals(values['median'])}f}"


def _decimals(value: float) -> int:
    """For three digits of a number that is not far below 1."""
    return 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0


def _mib(value: float | None) -> str:
    return DASH if value is None else f"{value:.0f}"


def _spread(values: Mapping[str, float], decimals: int) -> str:
    """Median and quartiles, or one number where these do not differ."""
    low, median, high = (f"{values[key]:.{decimals}f}" for key in ("lower", "median", "upper"))
    return median if low == high else f"{median} ({low} to {high})"


TABLES: dict[str, Callable[..., str]] = {
    "inference": inference,
    "parts": parts,
    "assignment": assignment,
    "training_step": training_step,
    "settings": settings,
    "exported_files": exported_files,
    "commands": commands,
}
"""By the names that a report's markers and a run's "benchmark" have."""
