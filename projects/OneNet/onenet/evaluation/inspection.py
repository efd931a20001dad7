"""Inspection of the assignment: positive samples, cost terms, runners-up, and changes between two
checkpoints.

For drawings see :mod:`onenet.evaluation.inspection_pictures`.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from detectron2.structures import Instances
from torchvision.ops import box_iou

from ..modeling.criterion import candidates_only
from ..structures import DensePredictions

if TYPE_CHECKING:  # for annotations only
    from ..modeling.meta_arch import OneNet

__all__ = [
    "Assignment",
    "Move",
    "Sample",
    "compare_assignments",
    "inspect_assignment",
    "summarize_assignments",
    "summarize_moves",
]


@dataclass(frozen=True)
class Sample:
    """A sample (location or anchor) with its cost for one object, in pixels of the network's input.

    Attributes:
        index: in [0, M), see :class:`onenet.structures.DensePredictions`.
        level: 0 for the finest.
        stride: of the level, in pixels.
        location: x, y of the anchor's centre, in pixels.
        terms: weighted cost terms by name, see
            :meth:`onenet.modeling.costs.MatchingCost.terms`; {"cost": ...} for a cost without
            terms.
        cost: sum of the terms; not finite if the prediction is not.
        score: of the object's class, in [0, 1].
        iou: of the predicted box, not clipped, with the object's box; nan for two boxes without
            area.
    """

    index: int
    level: int
    stride: int
    location: tuple[float, float]
    terms: dict[str, float]
    cost: float
    score: float
    iou: float


@dataclass(frozen=True)
class Assignment:
    """A matched object of an image, in pixels of the network's input.

    Attributes:
        object_index: among the image's objects.
        object_class: in [0, K).
        box: corners ``x1, y1, x2, y2`` in pixels.
        positive: the sample that the object is matched to.
        offset: location of the positive minus box centre, dx and dy in pixels.
        relative_offset: dx / width, dy / height of the box; within +-0.5 inside the box; nan for a
            box without area.
        distance: length of ``offset``, in pixels.
        relative_distance: length of ``relative_offset``.
        runner_up: the cheapest other sample; None if no other cost is finite.
        margin: cost of the runner-up minus that of the positive; None without a runner-up. Negative
            if the positive is not the cheapest sample, which the Hungarian matcher allows.
    """

    object_index: int
    object_class: int
    box: tuple[float, float, float, float]
    positive: Sample
    offset: tuple[float, float]
    relative_offset: tuple[float, float]
    distance: float
    relative_distance: float
    runner_up: Sample | None
    margin: float | None


@dataclass(frozen=True)
class Move:
    """One object's positive sample under two models.

    Attributes:
        object_index: among the image's objects.
        box: the object's corners ``x1, y1, x2, y2`` in pixels.
        before: the positive of the first model.
        after: the positive of the second model.
        moved: whether the samples differ. The distance can still be 0, with several anchors per
            location or levels whose locations coincide.
        level_change: level of ``after`` minus level of ``before``; positive towards coarser levels.
        distance: between the two locations, in pixels.
        distance_in_strides: the same in strides of the level of ``before``.
    """

    object_index: int
    box: tuple[float, float, float, float]
    before: Sample
    after: Sample
    moved: bool
    level_change: int
    distance: float
    distance_in_strides: float


@torch.no_grad()
def inspect_assignment(model: OneNet, inputs: dict[str, Any]) -> list[Assignment]:
    """Matches the objects of an image with the criterion's matcher and reports the costs.

    With rescoring, these are the one-to-one matches of the rescored candidates. Costs are computed
    one object at a time, so memory is O(M).

    Args:
        model: in evaluation mode.
        inputs: one image from the training mapper, with "image" and "instances".

    Returns:
        One assignment for each matched object, in the order of the objects. The Hungarian matcher
        may leave objects out.
    """
    images = model.preprocess_image([inputs])
    features = model.backbone(images.tensor)
    predictions = model.head([features[name] for name in model.head_in_features])
    shapes = model.backbone.output_shape()
    strides = [shapes[name].stride for name in model.head_in_features]
    gt = inputs["instances"].to(model.device)
    # In float32, as in the criterion
    with torch.autocast(predictions.pred_logits.device.type, enabled=False):
        predictions = predictions.in_float32()
        if model.rescoring is not None:
            rescored = model.rescoring.rescore(predictions, model.max_detections_per_image)
            predictions = candidates_only(predictions, rescored)
        matcher = model.criterion.matcher
        ((samples, objects),) = matcher(predictions, [gt])
        return [
            _assignment(matcher.cost, predictions, strides, gt, index, sample)
            for index, sample in zip(objects.tolist(), samples.tolist(), strict=True)
        ]


def _assignment(
    cost_function: Any,
    predictions: DensePredictions,
    strides: list[int],
    gt: Instances,
    index: int,
    positive: int,
) -> Assignment:
    """The assignment of one object of the image."""
    one = gt[index]
    arguments = (predictions.pred_logits[0], predictions.pred_boxes[0], predictions.anchors, one)
    if hasattr(cost_function, "terms"):
        terms = cost_function.terms(*arguments)
    else:
        terms = {"cost": cost_function(*arguments)}
    cost = sum(terms.values())[:, 0]  # (M,)

    def sample_at(sample: int) -> Sample:
        anchor = predictions.anchors[sample]
        level = bisect.bisect_right(list(itertools.accumulate(predictions.level_sizes)), sample)
        box = predictions.pred_boxes[0, sample]
        return Sample(
            index=sample,
            level=level,
            stride=strides[level],
            location=tuple(((anchor[:2] + anchor[2:]) / 2).tolist()),
            terms={name: term[sample, 0].item() for name, term in terms.items()},
            cost=cost[sample].item(),
            score=predictions.pred_logits[0, sample, one.gt_classes].sigmoid().item(),
            iou=box_iou(box[None], one.gt_boxes.tensor).item(),
        )

    here = sample_at(positive)
    others = cost.masked_fill(~cost.isfinite(), math.inf)
    others[positive] = math.inf
    cheapest = int(others.argmin())
    second = sample_at(cheapest) if others[cheapest].isfinite() else None

    box = one.gt_boxes.tensor[0]
    offset = torch.tensor(here.location, device=box.device) - (box[:2] + box[2:]) / 2
    relative = offset / (box[2:] - box[:2])
    relative[~relative.isfinite()] = math.nan
    return Assignment(
        object_index=index,
        object_class=int(one.gt_classes),
        box=tuple(box.tolist()),
        positive=here,
        offset=tuple(offset.tolist()),
        relative_offset=tuple(relative.tolist()),
        distance=offset.norm().item(),
        relative_distance=relative.norm().item(),
        runner_up=second,
        margin=None if second is None else second.cost - here.cost,
    )


def compare_assignments(before: Sequence[Assignment], after: Sequence[Assignment]) -> list[Move]:
    """Compares the positives of an image's objects between two models.

    Args:
        before: of the first model.
        after: of the second model, for the same inputs.

    Returns:
        One move for each object matched by both, in the order of the objects.

    Raises:
        ValueError: an object's box differs: the two are not of one image.
    """
    later = {assignment.object_index: assignment for assignment in after}
    moves = []
    for old in before:
        new = later.get(old.object_index)
        if new is None:
            continue
        if new.box != old.box:
            raise ValueError(f"Object {old.object_index} has the box {old.box}, then {new.box}.")
        distance = math.dist(old.positive.location, new.positive.location)
        moves.append(
            Move(
                object_index=old.object_index,
                box=old.box,
                before=old.positive,
                after=new.positive,
                moved=old.positive.index != new.positive.index,
                level_change=new.positive.level - old.positive.level,
                distance=distance,
                distance_in_strides=distance / old.positive.stride,
            )
        )
    return moves


def summarize_assignments(assignments: Sequence[Assignment]) -> dict[str, Any]:
    """Means over the objects of any number of images.

    Args:
        assignments: of one model.

    Returns:
        "objects", their number; "share_by_stride", stride -> share of the positives, finest first;
        the means "distance" (pixels), "relative_distance", "terms" (by name), "cost", "score",
        "iou" and "margin", nan without values.
    """
    positives = [assignment.positive for assignment in assignments]
    strides = [positive.stride for positive in positives]
    names = list(dict.fromkeys(name for positive in positives for name in positive.terms))
    return {
        "objects": len(positives),
        "share_by_stride": {s: strides.count(s) / len(strides) for s in sorted(set(strides))},
        "distance": _mean(a.distance for a in assignments),
        "relative_distance": _mean(a.relative_distance for a in assignments),
        "terms": {name: _mean(p.terms[name] for p in positives) for name in names},
        "cost": _mean(p.cost for p in positives),
        "score": _mean(p.score for p in positives),
        "iou": _mean(p.iou for p in positives),
        "margin": _mean(a.margin for a in assignments if a.margin is not None),
    }


def summarize_moves(moves: Sequence[Move]) -> dict[str, float]:
    """Shares and means over the objects of any number of images.

    Args:
        moves: between two models.

    Returns:
        "objects", their number; the shares "moved", "to_finer" and "to_coarser" level; the mean
        "distance" (pixels) and "distance_in_strides" of those that moved; nan without values.
    """
    moved = [move for move in moves if move.moved]
    return {
        "objects": len(moves),
        "moved": _mean(move.moved for move in moves),
        "to_finer": _mean(move.level_change < 0 for move in moves),
        "to_coarser": _mean(move.level_change > 0 for move in moves),
        "distance": _mean(move.distance for move in moved),
        "distance_in_strides": _mean(move.distance_in_strides for move in moved),
    }


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.fmean(values) if values else math.nan
