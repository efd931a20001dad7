"""Pictures: predictions, where each object's positive sample lies, and how that moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap

from .inspection import Assignment, Move
from .utils.errors import ConfigError

__all__ = ["draw_assignment", "draw_detections", "draw_moves", "enlarged_height", "tile"]

_COLORS = colormap(rgb=True, maximum=1)[[0, 2, 4, 6, 8, 13, 16, 22, 38, 45]]


def draw_detections(
    image: np.ndarray, instances: Instances, class_names: list[str], height: int = 384
) -> np.ndarray:
    """Draws boxes with class names, and scores where there are any.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: with ``gt_boxes`` and ``gt_classes``, or with ``pred_boxes``, ``pred_classes``
            and ``scores``; in pixels of the image.
        class_names: of the K classes.
        height: of the picture, in pixels.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    predicted = instances.has("pred_boxes")
    boxes = (instances.pred_boxes if predicted else instances.gt_boxes).tensor
    classes = (instances.pred_classes if predicted else instances.gt_classes).tolist()
    labels = [class_names[c] for c in classes]
    if predicted:
        labels = [
            f"{label} {score:.2f}"
            for label, score in zip(labels, instances.scores.tolist(), strict=True)
        ]
    picture, scale = _canvas(image, height)
    picture.overlay_instances(
        boxes=(boxes * scale).cpu().numpy(),
        labels=labels,
        assigned_colors=[_COLORS[c % len(_COLORS)] for c in classes],
        alpha=1.0,
    )
    return picture.get_output().get_image()


def enlarged_height(image: np.ndarray, least: int, widest: int = 4096) -> int:
    """A height for :func:`draw_detections` at which labels do not hide a small image.

    Args:
        image: (H, W, 3).
        least: wanted height in pixels.
        widest: to what width in pixels an image may be enlarged, lest a panorama fill the memory.

    Returns:
        ``least`` or what ``widest`` leaves of it, and at least H.
    """
    height, width = image.shape[:2]
    return max(height, min(least, height * widest // width))


def draw_assignment(
    assignments: Sequence[Assignment],
    image: np.ndarray,
    height: int = 384,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Draws each object's box, a dot on its positive sample, and a ring on the runner-up.

    A line joins box centre and positive.

    Args:
        assignments: of the image's objects, see :func:`onenet.inspection.inspect_assignment`.
        image: (H, W, 3) uint8, RGB, of the size of the network's input.
        height: of the picture, in pixels.
        labels: one for each object; by default the stride of the positive's level.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    picture, scale = _canvas(image, height)
    if labels is None:
        labels = [f"stride {a.positive.stride}" for a in assignments]
    colors = [_COLORS[a.object_index % len(_COLORS)] for a in assignments]
    _overlay_boxes(picture, [a.box for a in assignments], scale, labels, colors)
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

    An object that kept its sample, or moved to one at the same place, has a dot instead.

    Args:
        moves: of the image's objects, see :func:`onenet.inspection.compare_assignments`.
        image: (H, W, 3) uint8, RGB, of the size of the network's input.
        height: of the picture, in pixels.
        labels: one for each object; by default the strides of its levels.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    picture, scale = _canvas(image, height)
    if labels is None:
        labels = [
            f"stride {m.before.stride} to {m.after.stride}"
            if m.level_change
            else f"stride {m.after.stride}"
            for m in moves
        ]
    colors = [_COLORS[m.object_index % len(_COLORS)] for m in moves]
    _overlay_boxes(picture, [m.box for m in moves], scale, labels, colors)
    for move, color in zip(moves, colors, strict=True):
        old, new = _scaled(move.before.location, scale), _scaled(move.after.location, scale)
        if move.distance > 0:
            _draw_ring(picture, old, color)
            _draw_arrow(picture, old, new, color)
        else:
            _draw_dot(picture, new, color)
    return picture.get_output().get_image()


def tile(rows: list[list[np.ndarray]], gap: int = 8) -> np.ndarray:
    """Joins pictures of one height into rows, and rows into one picture, white between them."""
    joined = []
    for pictures in rows:
        bordered = [np.pad(p, ((gap, 0), (gap, 0), (0, 0)), constant_values=255) for p in pictures]
        joined.append(np.concatenate(bordered, axis=1))
    width = max(row.shape[1] for row in joined)
    joined = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in joined
    ]
    return np.pad(np.concatenate(joined), ((0, gap), (0, gap), (0, 0)), constant_values=255)


def _canvas(image: np.ndarray, height: int) -> tuple[Any, float]:
    """A Detectron2 Visualizer over the image resized to a height, and the scale of that."""
    try:
        import cv2
        from detectron2.utils.visualizer import Visualizer
    except ImportError as error:
        raise ConfigError(
            "Pictures need OpenCV: pip install opencv-python-headless (or opencv-python)."
        ) from error
    scale = height / image.shape[0]
    size = (round(image.shape[1] * scale), height)
    return Visualizer(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)), scale


def _scaled(point: tuple[float, float], scale: float) -> tuple[float, float]:
    return point[0] * scale, point[1] * scale


def _overlay_boxes(
    picture: Any,
    boxes: list[tuple[float, ...]],
    scale: float,
    labels: Sequence[str],
    colors: list[np.ndarray],
) -> None:
    picture.overlay_instances(
        boxes=np.array(boxes).reshape(-1, 4) * scale,
        labels=list(labels),
        assigned_colors=colors,
        alpha=1.0,
    )


# Marks lie over the labels, whose place in the order of drawing is 10: small objects have both.
_ABOVE_LABELS = 11


def _draw_dot(picture: Any, point: tuple[float, float], color: np.ndarray) -> None:
    from matplotlib.patches import Circle

    dot = Circle(
        point, radius=6, facecolor=color, edgecolor="white", linewidth=1.5, zorder=_ABOVE_LABELS
    )
    picture.output.ax.add_patch(dot)


def _draw_ring(picture: Any, point: tuple[float, float], color: np.ndarray) -> None:
    """Smaller than the dot and hollow, so that it shows what lies under it."""
    from matplotlib.patches import Circle

    for edge, width in (("white", 4), (color, 2)):
        ring = Circle(
            point, radius=4, fill=False, edgecolor=edge, linewidth=width, zorder=_ABOVE_LABELS
        )
        picture.output.ax.add_patch(ring)


def _draw_arrow(
    picture: Any, start: tuple[float, float], end: tuple[float, float], color: np.ndarray
) -> None:
    from matplotlib.patches import FancyArrowPatch

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
        zorder=_ABOVE_LABELS,
    )
    picture.output.ax.add_patch(arrow)
