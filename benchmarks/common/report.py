"""What was measured, as a dictionary for json and as Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import detectron2
import torch

from .parts import PARTS
from .runtimes import COMPLETE, EVERY_CANDIDATE, NETWORK, Key, Setting
from .stages import Detector
from .timing import Quartiles, Times
from .ways import decimals

__all__ = ["describe_detector", "describe_machine", "environment", "results", "to_markdown"]

DASH = "–"
_PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino")
_GRAPH_WORDS = {
    NETWORK: "network",
    COMPLETE: "network and post-processing",
    EVERY_CANDIDATE: "network; score threshold 0",
}
WHAT_IS_TIMED = """\
What is timed, for one batch of real images stretched to the size, in milliseconds:

* **network**: from the uint8 batch in memory: normalisation, backbone, head, up to the raw outputs
  of the last convolutions. For ONNX Runtime and OpenVINO handing the arrays over is included.
* **post-processing**: from there to the detections in pixels of the network's input. OneNet:
  top-k, decoding of what that keeps, rescoring where the model has it. FCOS and RetinaNet: score
  threshold and the best candidates of each level, decoding, class-wise NMS. It is the models' own
  Python code in torch, in eager mode, whatever runs the network; so are the Instances at the end.
* Where the runtime holds **network and post-processing** (OneNet only), only the total exists, and
  the result is arrays of boxes, scores and classes.
* Not timed: reading, decoding and resizing the image, copying it to the device, rescaling boxes to
  the original image, and the compiling and exporting beforehand.

Each round calls all rows once, in an order that is shuffled anew; each timed call follows an
untimed one of the same row. A cell has the median over the rounds, with the quartiles in brackets.
A ratio is the median of the rounds' own ratios to the reference, in the same runtime with its NMS
behind it; below 1 is faster."""
PARTS_ARE = """\
**Parts** are those of the model's own call in eager mode, from Detectron2's input to its output, as
medians. Top-k + decode is a part of the post-processing above; FCOS and RetinaNet do it by image
and level, with the score threshold. OneNet's head also puts the outputs of all levels behind each
other. The rest: Instances and their scaling to the output's size; OneNet's look for NaN and inf;
in FCOS and RetinaNet anchors (which OneNet's head keeps), the transposition of the levels, the
scores of all samples, and the choice of what NMS left. A GPU is waited for after each part, so
that they take longer together than the call alone."""


def environment(device: str, threads: int, half: bool) -> dict[str, str]:
    """Machine, versions, threads and precision.

    Args:
        device: "cpu" or "cuda".
        threads: of each runtime.
        half: whether backbone and head compute in float16.
    """
    precision = "float16 in backbone and head" if half else "float32"
    if device == "cuda" and not half and torch.backends.cudnn.allow_tf32:
        precision += " (convolutions may use TF32, torch's default)"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "CPU": f"{_cpu_model()}, {_cores()} cores for this process",
        "GPU": gpu,
        "device": device,
        "precision": precision,
        "threads": str(threads),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "detectron2": detectron2.__version__,  # its package's name depends on where it is from
        **{name: _version(name) for name in _PACKAGES},
    }


def describe_machine(device: str) -> str:
    """Machine, threads and versions in a sentence."""
    known = environment(device, torch.get_num_threads(), half=False)
    where = known["GPU"] if device == "cuda" else known["CPU"]
    return (
        f"{where}, {known['threads']} threads, torch {known['torch']}, Detectron2"
        f" {known['detectron2']}, Python {known['python']}, load {os.getloadavg()[0]:.1f}."
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe_detector(detector: Detector) -> dict[str, Any]:
    """Name, config, weights, number of parameters, and whether it has NMS."""
    return {
        "name": detector.name,
        "config": detector.config,
        "weights": detector.weights or "random",
        "nms": detector.has_nms,
        "parameters": sum(p.numel() for p in detector.network.parameters()),
    }


def results(
    times: Mapping[Key, Times],
    failures: Mapping[Key, str],
    order: Sequence[Key],
    setting: Setting,
    reference: str,
    candidates: Mapping[str, Sequence[int]],
    parts: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> dict[str, Any]:
    """The rows of one setting.

    Args:
        times: of what was timed.
        failures: reasons for the rest.
        order: of the rows.
        setting: size and batch.
        reference: name of the detector that ratios refer to.
        candidates: boxes that enter NMS, for each image, by what the report is to call it.
        parts: of :func:`common.time_parts`, by the detectors' names.
    """
    rows = []
    for key in order:
        row: dict[str, Any] = {**key._asdict(), "failure": failures.get(key)}
        if key in times:
            row.update(_row(key, times[key], times.get(Key(reference, key.runtime, NETWORK))))
            row["images_per_second"] = 1000 * setting.batch / row["total"][1]
        rows.append(row)
    return {
        "size": list(setting.size),
        "batch": setting.batch,
        "candidates": {name: list(counts) for name, counts in candidates.items()},
        "rows": rows,
        "parts": {name: _parts_row(rounds) for name, rounds in (parts or {}).items()},
    }


def _row(key: Key, own: Times, reference: Times | None) -> dict[str, Any]:
    row: dict[str, Any] = {"samples": {"total": own.total}, "total": _quartiles(own.total)}
    if key.graph != COMPLETE:
        row["samples"]["network"] = own.network
        row["network"] = _quartiles(own.network)
        row["postprocessing"] = _quartiles(own.postprocessing)
        row["share"] = statistics.median(own.share)
    if reference is not None:
        row["total_ratio"] = _quartiles(_ratios(own.total, reference.total))
        if key.graph != COMPLETE:
            row["network_ratio"] = _quartiles(_ratios(own.network, reference.network))
    return row


def _parts_row(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    totals = [sum(parts.values()) for parts in rounds]
    shares = [x["top-k + decode"] / total for x, total in zip(rounds, totals, strict=True)]
    return {
        "samples": list(rounds),
        "parts": {name: statistics.median(parts[name] for parts in rounds) for name in PARTS},
        "total": _quartiles(totals),
        "share": _quartiles(shares),
    }


def _ratios(own: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Of each round."""
    return [a / b for a, b in zip(own, reference, strict=True)]


def _quartiles(values: Sequence[float]) -> list[float]:
    quartiles = Quartiles.from_values(values)
    return [quartiles.lower, quartiles.median, quartiles.upper]


def to_markdown(report: Mapping[str, Any]) -> str:
    """The whole report.

    Args:
        report: with "command", "environment", "load", "rounds", "warm_up", "reference", "detectors"
            (of :func:`describe_detector`) and "settings" (of :func:`results`).
    """
    facts = [f"{name}: {value}" for name, value in report["environment"].items()]
    before, after = report["load"]
    parts = [
        "# Benchmark",
        f"```\n{report['command']}\n```",
        "; ".join(facts) + f". Load average of the machine (1 minute) before {before:.1f}, after"
        f" {after:.1f}, including this program. {report['rounds']} rounds after"
        f" {report['warm_up']} that do not count. Reference: {report['reference']}.",
        WHAT_IS_TIMED,
        *([PARTS_ARE] if any(setting["parts"] for setting in report["settings"]) else []),
        _table(
            ("detector", "config", "weights", "parameters"),
            [_detector_cells(detector) for detector in report["detectors"]],
        ),
    ]
    random = [detector for detector in report["detectors"] if detector["weights"] == "random"]
    if random:
        parts.append(_random_sentences(random))
    for setting in report["settings"]:
        height, width = setting["size"]
        parts.append(f"## {height} x {width} pixels, batch {setting['batch']}")
        parts.append(_candidates_sentence(setting["candidates"]))
        header = (
            *(
                "detector",
                "runtime",
                "the runtime holds",
                "network",
                "post-processing",
                "its share",
            ),
            *("total", "images a second", "network, ratio", "total, ratio"),
        )
        parts.append(_table(header, [_result_cells(row) for row in setting["rows"]]))
        if setting["parts"]:
            parts.append(_parts_table(setting["parts"]))
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(x.replace("|", "/") for x in line) + " |" for line in lines)


def _random_sentences(detectors: Sequence[Mapping[str, Any]]) -> str:
    text = f"**Random weights: {', '.join(x['name'] for x in detectors)}.**"
    text += " A network's time does not depend on them, nor does that of top-k and decoding."
    with_nms = [x["name"] for x in detectors if x["nms"]]
    if not with_nms:
        return text
    return (
        f"{text} What enters the NMS of {', '.join(with_nms)} is not what enters that of a trained"
        " detector: untrained scores are all alike, so either none or nearly all pass the"
        " threshold. The rows with score threshold 0 rank all scores and hand NMS the most that it"
        " can get: the dearest case, not a usual one."
    )


def _candidates_sentence(candidates: Mapping[str, Sequence[int]]) -> str:
    counts = [
        f"{name} {statistics.median(x):.0f} ({min(x)} to {max(x)})"
        for name, x in candidates.items()
    ]
    return (
        "Boxes that enter NMS, an image, median and range: " + ("; ".join(counts) or "no NMS") + "."
    )


def _detector_cells(detector: Mapping[str, Any]) -> list[str]:
    return [
        *(detector["name"], detector["config"], detector["weights"]),
        f"{detector['parameters'] / 1e6:.2f} M",
    ]


def _result_cells(row: Mapping[str, Any]) -> list[str]:
    cells = [row["detector"], row["runtime"], _GRAPH_WORDS[row["graph"]]]
    if row["failure"]:
        return [*cells, row["failure"], *[DASH] * 6]
    return [
        *cells,
        _milliseconds(row.get("network")),
        _milliseconds(row.get("postprocessing")),
        f"{100 * row['share']:.0f} %" if "share" in row else DASH,
        _milliseconds(row["total"]),
        f"{row['images_per_second']:.1f}",
        _spread(row.get("network_ratio"), 2),
        _spread(row.get("total_ratio"), 2),
    ]


def _parts_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return _table(
        ("parts, eager", *PARTS, "total", "share of top-k + decode, %"),
        [
            [
                name,
                *(f"{x:.{decimals(x)}f}" if x else DASH for x in row["parts"].values()),
                _milliseconds(row["total"]),
                _spread([100 * x for x in row["share"]], 2),
            ]
            for name, row in rows.items()
        ],
    )


def _milliseconds(quartiles: Sequence[float] | None) -> str:
    return DASH if quartiles is None else _spread(quartiles, decimals(quartiles[1]))


def _spread(quartiles: Sequence[float] | None, decimals: int) -> str:
    if quartiles is None:
        return DASH
    lower, median, upper = (f"{value:.{decimals}f}" for value in quartiles)
    return f"{median} ({lower} to {upper})"
