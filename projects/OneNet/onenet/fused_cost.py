"""The matching cost in few passes over memory; :class:`onenet.costs.MatchingCost` is its oracle.

Shape legend: ``M`` samples, ``n`` objects, ``K`` classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fused_matching_cost"]

CHUNK_ELEMENTS = 2**16
"""Pairs that are computed at a time on the CPU: so few that their intermediate results stay in its
cache."""


@torch.no_grad()
def fused_matching_cost(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    gt_classes: Tensor,
    gt_boxes: Tensor,
    image_size: tuple[int, int],
    *,
    class_weight: float,
    l1_weight: float,
    giou_weight: float,
    focal_alpha: float,
    focal_gamma: float,
) -> Tensor:
    """Classification, L1 and GIoU cost of every pair, weighted and summed.

    Three things make it fast: coordinates are apart, so that each step runs along memory; objects
    lie behind each other in memory, as the search for each one's cheapest sample reads them; and L1
    and the enclosing box follow from what the intersection needs. With ``i`` the (signed) overlap
    of two intervals and ``s`` the sum of their lengths, the interval around both is ``s - i`` long,
    and the distances of their ends are ``s - 2 i`` together, since max(a, b) + min(a, b) = a + b.

    Args:
        pred_logits: (M, K), before the sigmoid.
        pred_boxes: (M, 4) corners in pixels.
        gt_classes: (n,) integers in [0, K).
        gt_boxes: (n, 4) corners in pixels.
        image_size: (height, width) in pixels, before padding.
        class_weight, l1_weight, giou_weight, focal_alpha, focal_gamma: see
            :class:`onenet.costs.MatchingCost`.

    Returns:
        (M, n) float32, the transpose of a contiguous matrix; not finite where the prediction is
        not.
    """
    num_gt, num_samples = len(gt_boxes), len(pred_boxes)
    height, width = image_size
    cost = pred_boxes.new_empty((num_gt, num_samples), dtype=torch.float32)
    predicted = _sides(pred_boxes, dim=0)
    step = num_gt
    if cost.device.type == "cpu":
        step = max(1, CHUNK_ELEMENTS // max(num_samples, 1))
    for start in range(0, num_gt, step):
        _add_location(
            cost[start : start + step],
            predicted,
            _sides(gt_boxes[start : start + step], dim=1),
            (l1_weight / width, l1_weight / height),
            giou_weight,
        )
    # A class that several objects have is computed once, where that is known without asking.
    num_classes = pred_logits.shape[1]
    if num_classes > num_gt:
        logits = pred_logits[:, gt_classes].t()
        cost.add_(_focal(logits, focal_alpha, focal_gamma), alpha=class_weight)
    else:
        of_classes = _focal(pred_logits.t(), focal_alpha, focal_gamma)
        cost.add_(of_classes[gt_classes], alpha=class_weight)
    return cost.t()


def _sides(boxes: Tensor, dim: int) -> tuple[Tensor, ...]:
    """x1, y1, x2, y2, width, height, area of boxes, with an axis of 1 at ``dim``, float32."""
    x1, y1, x2, y2 = (x.unsqueeze(dim) for x in boxes.float().t().contiguous().unbind())
    width, height = x2 - x1, y2 - y1
    return x1, y1, x2, y2, width, height, width * height


def _add_location(
    cost: Tensor,
    predicted: tuple[Tensor, ...],
    objects: tuple[Tensor, ...],
    l1_weights: tuple[float, float],
    giou_weight: float,
) -> None:
    """Puts weighted L1 and GIoU cost into a (n, M) matrix."""
    x1, y1, x2, y2, widths, heights, areas = predicted
    gt_x1, gt_y1, gt_x2, gt_y2, gt_widths, gt_heights, gt_areas = objects
    overlap_x = torch.minimum(x2, gt_x2).sub_(torch.maximum(x1, gt_x1))
    overlap_y = torch.minimum(y2, gt_y2).sub_(torch.maximum(y1, gt_y1))
    around_x, around_y = widths + gt_widths, heights + gt_heights
    torch.sub(around_x, overlap_x, alpha=2, out=cost)
    cost.mul_(l1_weights[0])
    work = torch.sub(around_y, overlap_y, alpha=2)
    cost.add_(work, alpha=l1_weights[1])
    enclosing = around_x.sub_(overlap_x).mul_(around_y.sub_(overlap_y))
    intersection = overlap_x.clamp_(min=0).mul_(overlap_y.clamp_(min=0))
    union = torch.add(areas, gt_areas, out=work).sub_(intersection)
    # -GIoU = -(intersection / union - (enclosing - union) / enclosing)
    giou_plus_1 = intersection.div_(union).add_(union.div_(enclosing))
    cost.sub_(giou_plus_1, alpha=giou_weight).add_(giou_weight)


def _focal(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """See :func:`onenet.costs.focal_cost`; of each logit, in its shape."""
    p = logits.float().sigmoid()
    q = 1 - p
    cost = (q + 1e-8).log_().mul_(p**gamma).mul_(1 - alpha)
    return cost.sub_((p + 1e-8).log_().mul_(q**gamma).mul_(alpha))
