"""Triton kernels of matching cost and focal loss.

Reference and fallback are :class:`onenet.modeling.costs.MatchingCost` and
:func:`onenet.modeling.focal_loss.focal_loss_sum`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["triton_focal_loss", "triton_matching_cost"]

BLOCK = 1024


@triton.jit
def _cost_kernel(
    logits,
    boxes,
    classes,
    gt_boxes,
    costs,
    num_samples,
    num_classes,
    image_width,
    image_height,
    class_weight,
    l1_weight,
    giou_weight,
    alpha,
    BLOCK: tl.constexpr,
):
    """Costs of one object at BLOCK samples."""
    row = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = sample < num_samples
    x1 = tl.load(boxes + sample * 4, mask=valid, other=0.0)
    y1 = tl.load(boxes + sample * 4 + 1, mask=valid, other=0.0)
    x2 = tl.load(boxes + sample * 4 + 2, mask=valid, other=0.0)
    y2 = tl.load(boxes + sample * 4 + 3, mask=valid, other=0.0)
    gt_x1 = tl.load(gt_boxes + row * 4)
    gt_y1 = tl.load(gt_boxes + row * 4 + 1)
    gt_x2 = tl.load(gt_boxes + row * 4 + 2)
    gt_y2 = tl.load(gt_boxes + row * 4 + 3)

    l1 = (tl.abs(x1 - gt_x1) + tl.abs(x2 - gt_x2)) / image_width
    l1 += (tl.abs(y1 - gt_y1) + tl.abs(y2 - gt_y2)) / image_height

    # Overlaps without minimum and maximum, which would drop NaN
    width, height = x2 - x1, y2 - y1
    gt_width, gt_height = gt_x2 - gt_x1, gt_y2 - gt_y1
    around_x = (width + gt_width + tl.abs(x1 - gt_x1) + tl.abs(x2 - gt_x2)) / 2
    around_y = (height + gt_height + tl.abs(y1 - gt_y1) + tl.abs(y2 - gt_y2)) / 2
    overlap_x = width + gt_width - around_x
    overlap_y = height + gt_height - around_y
    intersection = tl.where(overlap_x < 0, 0.0, overlap_x) * tl.where(overlap_y < 0, 0.0, overlap_y)
    union = width * height + gt_width * gt_height - intersection
    enclosing = around_x * around_y
    giou = intersection / union - (enclosing - union) / enclosing

    place = sample.to(tl.int64) * num_classes + tl.load(classes + row)
    logit = tl.load(logits + place, mask=valid, other=0.0)
    p = 1 / (1 + tl.exp(-logit))
    q = 1 - p
    positive = alpha * q * q * -tl.log(p + 1e-8)
    negative = (1 - alpha) * p * p * -tl.log(q + 1e-8)
    cost = class_weight * (positive - negative) + l1_weight * l1 - giou_weight * giou
    tl.store(costs + row * num_samples + sample, cost, mask=valid)


@torch.no_grad()
def triton_matching_cost(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    gt: Instances,
    class_weight: float,
    l1_weight: float,
    giou_weight: float,
    focal_alpha: float,
) -> Tensor:
    """Matching cost with gamma 2; see :class:`onenet.modeling.costs.MatchingCost`.

    Args:
        pred_logits: (M, K), before the sigmoid.
        pred_boxes: (M, 4) corners in pixels.
        gt: n objects with ``gt_boxes`` and ``gt_classes``.
        class_weight, l1_weight, giou_weight, focal_alpha: the cost's.

    Returns:
        (M, n) float32, the transpose of a contiguous matrix.
    """
    gt_boxes = gt.gt_boxes.tensor.float().contiguous()
    height, width = gt.image_size
    num_gt, (num_samples, num_classes) = len(gt_boxes), pred_logits.shape
    costs = pred_boxes.new_empty((num_gt, num_samples), dtype=torch.float32)
    if costs.numel():
        with torch.cuda.device_of(costs):
            _cost_kernel[(num_gt, triton.cdiv(num_samples, BLOCK))](
                pred_logits.float().contiguous(),
                pred_boxes.float().contiguous(),
                gt.gt_classes.contiguous(),
                gt_boxes,
                costs,
                num_samples,
                num_classes,
                float(width),
                float(height),
                class_weight,
                l1_weight,
                giou_weight,
                focal_alpha,
                BLOCK=BLOCK,
            )
    return costs.t()


@triton.jit
def _focal_kernel(logits, gradient, sums, size, weight, BLOCK: tl.constexpr):
    """Summed loss of BLOCK negatives, and its gradient."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = place < size
    x = tl.load(logits + place, mask=valid, other=0.0)
    small = tl.exp(-tl.abs(x))
    p = tl.where(x >= 0, 1.0, small) / (1 + small)
    # softplus(x) = -log(1 - p); 1 + small would lose digits where small is tiny
    log_term = tl.where(small < 5e-3, small * (1 - small / 2), tl.log(1 + small))
    softplus = tl.where(x > 0, x, 0.0) + log_term
    softplus = tl.where(x == x, softplus, x)  # keeps NaN
    power = weight * p * p
    tl.store(gradient + place, power * (2 * (1 - p) * softplus + p), mask=valid)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(valid, power * softplus, 0.0)))


@torch.no_grad()
def triton_focal_loss(logits: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Summed focal loss of negatives with gamma 2, and its gradient.

    Args:
        logits: (L,) float32, contiguous.
        weight: factor of the loss.

    Returns:
        The loss, a scalar, and its gradient (L,).
    """
    gradient = torch.empty_like(logits)
    blocks = triton.cdiv(logits.numel(), BLOCK)
    sums = logits.new_empty(blocks)
    if blocks:
        with torch.cuda.device_of(logits):
            _focal_kernel[(blocks,)](logits, gradient, sums, logits.numel(), weight, BLOCK=BLOCK)
    return sums.sum(), gradient
