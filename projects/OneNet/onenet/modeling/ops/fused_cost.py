"""The matching cost in few passes over memory; tested against :mod:`onenet.modeling.costs`.

Shape legend: ``N`` images, ``M`` samples, ``n`` objects of one image, ``t`` of several, ``K``
classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from detectron2.structures import Instances
from torch import Tensor

from ...structures import Targets
from .kernels import run_kernel

if TYPE_CHECKING:
    from ..costs import WeightedCost

__all__ = ["batched_matching_cost", "fused_matching_cost"]

CHUNK_ELEMENTS = 2**17
"""Pairs that are computed at a time on the CPU: so few that the five or six intermediate results of
each step, half a MiB each, stay in its caches."""


@torch.no_grad()
def fused_matching_cost(
    pred_logits: Tensor, pred_boxes: Tensor, gt: Instances, weights: WeightedCost
) -> Tensor:
    """Classification, L1 and GIoU cost of every pair in one image, weighted and summed.

    Three things make it fast: coordinates are apart, so that each step runs along memory; objects
    lie behind each other in memory, as the search for each one's cheapest sample reads them; and L1
    and the enclosing box follow from what the intersection needs. With ``i`` the (signed) overlap
    of two intervals and ``s`` the sum of their lengths, the interval around both is ``s - i`` long,
    and the distances of their ends are ``s - 2 i`` together, since max(a, b) + min(a, b) = a + b.

    Args:
        pred_logits: (M, K), before the sigmoid.
        pred_boxes: (M, 4) corners in pixels.
        gt: n objects with ``gt_boxes`` and ``gt_classes``.
        weights: of the parts.

    Returns:
        (M, n) float32, the transpose of a contiguous matrix; not finite where the prediction is
        not.
    """
    num_gt, num_samples = len(gt), len(pred_boxes)
    height, width = gt.image_size
    l1_weights = weights.l1_weight / width, weights.l1_weight / height
    cost = pred_boxes.new_empty((num_gt, num_samples), dtype=torch.float32)
    predicted = _sides(pred_boxes[None])
    at_once = CHUNK_ELEMENTS // max(num_samples, 1) if cost.device.type == "cpu" else num_gt
    step = _even_step(num_gt, max(1, at_once))
    # A class that several objects have is computed once, where that is known without asking.
    of_classes, num_classes = None, pred_logits.shape[1]
    if num_classes <= num_gt:
        pieces = pred_logits.split(max(1, step * num_samples // num_classes))
        of_classes = torch.cat([_focal(piece, weights).t() for piece in pieces], dim=1)  # (K, M)
    for start in range(0, num_gt, step):
        part = slice(start, start + step)
        objects, classes = _sides(gt.gt_boxes.tensor[part, None]), gt.gt_classes[part]
        _add_location(cost[part], predicted, objects, l1_weights, weights.giou_weight)
        if of_classes is None:
            class_cost = _focal(pred_logits.t()[classes], weights)  # (n, M), contiguous
        else:
            class_cost = of_classes[classes]
        cost[part].add_(class_cost, alpha=weights.class_weight)
    return cost.t()


@torch.no_grad()
def batched_matching_cost(
    pred_logits: Tensor, pred_boxes: Tensor, targets: Targets, rows: slice, weights: WeightedCost
) -> Tensor:
    """The same for objects of several images at a time.

    On a GPU it is a single kernel, where Triton works.

    Args:
        pred_logits: (N, M, K), before the sigmoid.
        pred_boxes: (N, M, 4) corners in pixels.
        targets: the batch's T objects.
        rows: which of them.
        weights: of the parts.

    Returns:
        (t, M) float32, contiguous.
    """
    arguments = (pred_logits, pred_boxes, targets, rows, weights)
    device, gamma = pred_logits.device, weights.focal_gamma
    costs = run_kernel("triton_matching_cost", device, gamma, *arguments)
    if costs is not None:
        return costs
    return _batched_in_steps(*arguments)


def _batched_in_steps(
    pred_logits: Tensor, pred_boxes: Tensor, targets: Targets, rows: slice, weights: WeightedCost
) -> Tensor:
    images, classes = targets.images[rows], targets.classes[rows]
    predicted = tuple(side[images] for side in _sides(pred_boxes))  # (t, M) each
    cost = pred_boxes.new_empty((len(images), pred_boxes.shape[1]), dtype=torch.float32)
    objects = _sides(targets.boxes[rows, None])
    l1_weights = (weights.l1_weight / targets.scales[rows, :2]).split(1, dim=1)
    _add_location(cost, predicted, objects, l1_weights, weights.giou_weight)
    class_cost = _focal(pred_logits[images, :, classes], weights)
    return cost.add_(class_cost, alpha=weights.class_weight)


def _even_step(count: int, at_most: int) -> int:
    """The size of as few pieces as can be, none above the given one, all but the last equal."""
    return max(1, math.ceil(count / max(1, math.ceil(count / at_most))))


def _sides(boxes: Tensor) -> tuple[Tensor, ...]:
    """x1, y1, x2, y2, width, height, area of boxes (..., 4), float32 (...) each."""
    x1, y1, x2, y2 = boxes.float().movedim(-1, 0).contiguous().unbind()
    width, height = x2 - x1, y2 - y1
    return x1, y1, x2, y2, width, height, width * height


def _add_location(
    cost: Tensor,
    predicted: tuple[Tensor, ...],
    objects: tuple[Tensor, ...],
    l1_weights: Sequence[float | Tensor],
    giou_weight: float,
) -> None:
    """Puts weighted L1 and GIoU cost into a (n, M) matrix.

    Args:
        cost: is overwritten.
        predicted, objects: :func:`_sides` of both, which broadcast to (n, M).
        l1_weights: of a pixel in x and in y.
        giou_weight: of the GIoU.
    """
    x1, y1, x2, y2, widths, heights, areas = predicted
    gt_x1, gt_y1, gt_x2, gt_y2, gt_widths, gt_heights, gt_areas = objects
    overlap_x = torch.minimum(x2, gt_x2).sub_(torch.maximum(x1, gt_x1))
    overlap_y = torch.minimum(y2, gt_y2).sub_(torch.maximum(y1, gt_y1))
    around_x, around_y = widths + gt_widths, heights + gt_heights
    torch.sub(around_x, overlap_x, alpha=2, out=cost)
    cost.mul_(l1_weights[0])
    work = torch.sub(around_y, overlap_y, alpha=2)
    cost.add_(work.mul_(l1_weights[1]))
    enclosing = around_x.sub_(overlap_x).mul_(around_y.sub_(overlap_y))
    intersection = overlap_x.clamp_(min=0).mul_(overlap_y.clamp_(min=0))
    union = torch.add(areas, gt_areas, out=work).sub_(intersection)
    # -GIoU = -(intersection / union - (enclosing - union) / enclosing)
    giou_plus_1 = intersection.div_(union).add_(union.div_(enclosing))
    cost.sub_(giou_plus_1, alpha=giou_weight).add_(giou_weight)


def _focal(logits: Tensor, weights: WeightedCost) -> Tensor:
    """See :func:`onenet.modeling.costs.focal_cost`; of each logit, in its shape."""
    alpha, gamma = weights.focal_alpha, weights.focal_gamma
    p = logits.float().sigmoid()
    q = 1 - p
    work = p**gamma
    cost = (q + 1e-8).log_().mul_(work).mul_(1 - alpha)
    return cost.sub_(torch.add(p, 1e-8, out=work).log_().mul_(q.pow_(gamma)).mul_(alpha))
