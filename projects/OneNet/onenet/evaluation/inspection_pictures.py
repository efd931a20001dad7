"""Drawings of each object's positive sample, and of its move between two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Circle, FancyArrowPatch, Patch

from ..utils.visualizer import COLORS, canvas
from .inspection import Assignment, Move

__all__ = ["draw_assignment", "draw_moves"]


def draw_assignment(
    assignments: Sequence[Assignment],
    image: np.ndarray,
    height: int = 384,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Draws each object's box, its positive sample as a dot, and the runner-up as a ring.

    A line connects box centre and positive.

    Args:
        assignments: of the image's objects, see
            :func:`onenet.evaluation.inspection.inspect_assignment`.
        image: (H, W, 3) uint8, RGB, of the size of the network's input.
        height: of the picture, in pixels.
        labels: one for each object; by default the stride of the positive's level.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    picture, scale = canvas(image, height)
    if labels is None:
        labels = [f"stride {a.positive.stride}" for a in assignments]
    colors = [COLORS[a.object_index % len(COLORS)] for a in assignments]
    boxes = np.array([a.box for a in assignments]).reshape(-1, 4) * scale
    picture.overlay_instances(boxes=boxes, labels=labels, assigned_colors=colors, alpha=1.0)
    for assignment, color in zip(assignments, colors, strict=True):
        x0, y0, x1, y1 = assignment.box
        center = ((x0 + x1) / 2 * scale, (y0 + y1) / 2 * scale)
        point = _scaled(assignment.positive.location, scale)
        picture.draw_line(*zip(center, point, strict=True), color=color)
        if assignment.runner_up is not None:
            _draw_ring(picture, _scaled(assignment.runner_up.location, scale), color)
        _draw_dot(picture, point, color)
    return picture.get_output().get_image()


def draw_moves(
    moves: Sequence[Move],
    image: np.ndarray,
    height: int = 384,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Draws each object's box, and an arrow from its old positive sample (ring) to the new one.

    An object whose positive is at the same location has a dot instead.

    Args:
        moves: of the image's objects, see :func:`onenet.evaluation.inspection.compare_assignments`.
        image: (H, W, 3) uint8, RGB, of the size of the network's input.
        height: of the picture, in pixels.
        labels: one for each object; by default the strides of its levels.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    picture, scale = canvas(image, height)
    if labels is None:
        labels = [
            f"stride {m.before.stride} to {m.after.stride}"
            if m.level_change
            else f"stride {m.after.stride}"
            for m in moves
        ]
    colors = [COLORS[m.object_index % len(COLORS)] for m in moves]
    boxes = np.array([m.box for m in moves]).reshape(-1, 4) * scale
    picture.overlay_instances(boxes=boxes, labels=labels, assigned_colors=colors, alpha=1.0)
    for move, color in zip(moves, colors, strict=True):
        old, new = _scaled(move.before.location, scale), _scaled(move.after.location, scale)
        if move.distance > 0:
            _draw_ring(picture, old, color)
            _draw_arrow(picture, old, new, color)
        else:
            _draw_dot(picture, new, color)
    return picture.get_output().get_image()


def _scaled(point: tuple[float, float], scale: float) -> tuple[float, float]:
    return point[0] * scale, point[1] * scale


def _add(picture: Any, patch: Patch) -> None:
    """Adds a patch above the labels, whose zorder is 10."""
    picture.output.ax.add_patch(patch).set_zorder(11)


def _draw_dot(picture: Any, point: tuple[float, float], color: np.ndarray) -> None:
    _add(picture, Circle(point, radius=6, facecolor=color, edgecolor="white", linewidth=1.5))


def _draw_ring(picture: Any, point: tuple[float, float], color: np.ndarray) -> None:
    """Draws a ring smaller than the dot, so that both stay visible."""
    for edge, width in (("white", 4), (color, 2)):
        _add(picture, Circle(point, radius=4, fill=False, edgecolor=edge, linewidth=width))


def _draw_arrow(
    picture: Any, start: tuple[float, float], end: tuple[float, float], color: np.ndarray
) -> None:
    arrow = FancyArrowPatch(
        start,
        end,
        arrowstyle="simple, head_length=0.7, head_width=0.9, tail_width=0.25",
        mutation_scale=14,
        shrinkA=0,
        shrinkB=0,
        facecolor=color,
        edgecolor="white",
        linewidth=1,
    )
    _add(picture, arrow)
