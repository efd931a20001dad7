"""The plots of the page, as SVG elements."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from .results import AS_CONFIGURED, NMS_OFF, mean_curve, variant_name

__all__ = ["plot_ap", "plot_duplicates", "plot_precision", "style"]

# Okabe and Ito's palette, safe for the colour-blind, without the faint yellow
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", "-.", (0, (7, 1.5, 1, 1.5, 1, 1.5)))
_DOTTED = (0, (1, 1.2))  # with NMS off
_STYLE = {
    "svg.fonttype": "none",  # text stays searchable
    "svg.hashsalt": "onenet",  # deterministic ids
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def _svg(prefix: str, draw: Callable[[Axes], None], height: float) -> str:
    """Draws a figure 4.5 inches wide as an ``<svg>`` element whose ids begin with ``prefix``."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(4.5, height), layout="constrained")
        draw(axes)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, bbox_inches="tight", pad_inches=0.05)
        plt.close(figure)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    # The page sets the size
    tag, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", tag) + ">" + rest


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of a detector in all plots, by its index."""
    color, dashes = _PALETTE[index % len(_PALETTE)], _DASHES[index % len(_DASHES)]
    return {"color": color, "linestyle": dashes}


def _lines(detectors: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], str, dict]]:
    """Detector, variant, and line style of each line."""
    return [
        (detector, variant, style(i) | ({"linestyle": _DOTTED} if variant == NMS_OFF else {}))
        for i, detector in enumerate(detectors)
        for variant in detector["aggregate"]
    ]


def _wrapped(name: str) -> str:
    """Breaks a long name into lines after underscores, hyphens and spaces."""
    return textwrap.fill(name.replace("_", "_ "), width=16).replace("_ ", "_")


def plot_ap(detectors: Sequence[dict[str, Any]]) -> str:
    """AP of each detector without and with NMS: bars for means, dots for seeds."""
    hatches = ("", "///")

    def draw(axes: Axes) -> None:
        for row, detector in enumerate(detectors):
            for side, (variant, key) in enumerate(_without_and_with_nms(detector)):
                mean = detector["aggregate"].get(variant, {}).get(key)
                y = row + (-0.2, 0.2)[side]
                if mean is None:
                    continue
                axes.barh(
                    y, mean["mean"], height=0.38, color=style(row)["color"], alpha=0.75,
                    hatch=hatches[side], edgecolor="white", zorder=2,
                )  # fmt: skip
                for seed in detector["seeds"]:
                    value = seed["evaluations"].get(variant, {}).get("results", {}).get(key)
                    if value is not None:
                        axes.plot(value, y, "ko", markersize=3.5, zorder=3)
                axes.annotate(
                    f"{mean['mean']:.1f}", (mean["max"], y), (4, 0), textcoords="offset points",
                    va="center", fontsize=8,
                )  # fmt: skip
        axes.set_yticks(range(len(detectors)), [_wrapped(d["name"]) for d in detectors])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)  # for the numbers
        axes.set(xlim=(0, None), xlabel="AP")
        patches = [Patch(facecolor="#777777", edgecolor="white", hatch=hatch) for hatch in hatches]
        axes.figure.legend(
            patches, ("without NMS", "with NMS"), loc="outside lower center", ncols=2
        )

    return _svg("ap", draw, height=1.4 + 0.7 * len(detectors))


def _without_and_with_nms(detector: dict[str, Any]) -> tuple[tuple[str, str], tuple[str, str]]:
    """(variant, key) of a detector's AP without NMS, and with NMS."""
    if detector["has_nms"]:
        return (NMS_OFF, "AP"), (AS_CONFIGURED, "AP")
    return (AS_CONFIGURED, "AP"), (AS_CONFIGURED, "AP_after_NMS")


def plot_duplicates(detectors: Sequence[dict[str, Any]]) -> str:
    """Duplicates per image by score threshold, logarithmic; means over the seeds."""
    labels = {"xlabel": "score threshold", "ylabel": "duplicates an image"}
    return _plot_curves("duplicates", detectors, "score", "duplicates_per_image", labels, log=True)


def plot_precision(detectors: Sequence[dict[str, Any]]) -> str:
    """Precision by recall at IoU 0.5; means over the seeds."""
    look = {"xlabel": "recall", "ylabel": "precision", "ylim": (0, 1.02)}
    return _plot_curves("precision", detectors, "recall", "precision", look)


def _plot_curves(
    prefix: str,
    detectors: Sequence[dict[str, Any]],
    x: str,
    y: str,
    look: dict[str, Any],
    log: bool = False,
) -> str:
    """Plots a curve of the evaluation, ``y``, over another, ``x``; ``look`` sets the axes."""
    lines = _lines(detectors)

    def draw(axes: Axes) -> None:
        for detector, variant, line_style in lines:
            xs, ys = (mean_curve(detector, variant, name) for name in (x, y))
            if len(xs) == len(ys) > 0:
                axes.plot(xs, ys, label=variant_name(detector, variant), **line_style)
        if log and any(max(line.get_ydata()) > 0 for line in axes.lines):
            axes.set_yscale("log", nonpositive="mask")
        axes.set(xlim=(0, 1), **look)
        if axes.lines:
            axes.figure.legend(loc="outside lower center", ncols=1, handlelength=3)

    return _svg(prefix, draw, height=2.9 + 0.17 * len(lines))
