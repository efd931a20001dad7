"""What a benchmark measured: a record for json, and its tables on the screen."""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import detectron2

from onenet.comparison.results import describe_machine
from onenet.utils.files import read_json, write_json

from .parts import PARTS
from .runtimes import COMPLETE, NETWORK, Key, Setting
from .tables import TABLES
from .timing import Times, quartiles
from .ways import ratios

__all__ = ["describe_run", "inference_rows", "make_parser", "parts_rows", "record"]

_PACKAGES = ("torchvision", "onnxruntime", "openvino")


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser that has ``--json``, for :func:`record`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write the numbers to a file, which keeps those of other commands that it has",
    )
    return parser


def record(
    file: Path | None,
    benchmark: str,
    rows: Sequence[Mapping[str, Any]],
    table: Callable[[Mapping[str, Any]], str] | None = None,
    **details: Any,
) -> None:
    """Prints the tables of a run, and adds the run to a json file.

    The file holds ``{"runs": [...]}``; a run of the same command is replaced. A run has
    ``benchmark``, ``command``, ``commit``, ``date``, ``machine``, ``versions``, ``rows`` and the
    details. Measured values in rows are those of :func:`common.quartiles`, times in milliseconds.

    Args:
        file: to write to, or None.
        benchmark: says what the rows hold; one of :data:`common.TABLES`, unless there is a table.
        rows: what json can hold.
        table: makes the run's table, for a benchmark that no report shows.
        **details: more entries of the run.
    """
    run = {
        "benchmark": benchmark,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        **describe_run(),
        "versions": {
            "python": platform.python_version(),
            "detectron2": detectron2.__version__,  # its package's name depends on where it is from
            **{name: _version(name) for name in _PACKAGES},
        },
        **details,
        "rows": list(rows),
    }
    kinds = [*(["parts"] if run.get("parts") else []), "commands"]
    tables = [table or TABLES[benchmark], *(TABLES[kind] for kind in kinds)]
    print("\n\n".join(make({"runs": [run]}) for make in tables))
    if file is not None:
        runs = read_json(file)["runs"] if file.exists() else []
        by_command = {old["command"]: old for old in runs}
        by_command[run["command"]] = run
        write_json(str(file), {"runs": list(by_command.values())})


def describe_run() -> dict[str, Any]:
    """The commit, the date and the machine."""
    return {
        "commit": _commit(),
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "machine": describe_machine(),
    }


def _commit() -> str | None:
    """HEAD's, and whether the code that runs differs from it; None outside a git repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    code = [":/benchmarks", ":/configs", ":/projects"]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code]).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + (" with changes" if changed else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def inference_rows(
    times: Mapping[Key, Times],
    failures: Mapping[Key, str],
    order: Sequence[Key],
    setting: Setting,
    reference: str,
    candidates: Mapping[tuple[str, str], Sequence[int]],
    random_weights: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The rows of one setting.

    Args:
        times: of what was timed.
        failures: reasons for the rest.
        order: of the rows.
        setting: size and batch.
        reference: name of the detector that ratios refer to, in the same runtime.
        candidates: boxes that enter NMS, for each image, by detector and graph.
        random_weights: names of the detectors that have such.
    """
    rows = []
    for key in order:
        row: dict[str, Any] = {
            "size": list(setting.size),
            "batch": setting.batch,
            **key._asdict(),
            "random_weights": key.detector in random_weights,
            "failure": failures.get(key),
        }
        if key in times:
            row["total"] = quartiles(times[key].total)
            if key.graph != COMPLETE:
                row["network"] = quartiles(times[key].network)
                row["postprocessing"] = quartiles(times[key].postprocessing)
            base = times.get(Key(reference, key.runtime, NETWORK))
            if base is not None:
                row["ratio"] = ratios(times[key].total, base.total)
        boxes = candidates.get((key.detector, key.graph))
        if boxes is not None:
            row["boxes_into_nms"] = quartiles(boxes)
        rows.append(row)
    return rows


def parts_rows(
    parts: Mapping[str, Sequence[Mapping[str, float]]], setting: Setting
) -> list[dict[str, Any]]:
    """Medians of :func:`common.time_parts`, the total, and the part of it that top-k takes."""
    rows = []
    for detector, rounds in parts.items():
        totals = [sum(times.values()) for times in rounds]
        rows.append(
            {
                "size": list(setting.size),
                "batch": setting.batch,
                "detector": detector,
                "parts": {name: statistics.median(x[name] for x in rounds) for name in PARTS},
                "total": quartiles(totals),
                "top_k_share": ratios([x["top-k + decode"] for x in rounds], totals),
            }
        )
    return rows
