"""Focal loss and its gradient in one pass, for many negatives and few positives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .ops.kernels import run_kernel

__all__ = ["focal_loss_sum"]

CHUNK_ELEMENTS = 2**16
"""Logits per chunk on the CPU: few enough that intermediate results stay in its cache."""


def focal_loss_sum(
    logits: Tensor,
    positives: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    scale: float = 1.0,
) -> Tensor:
    """Sum of the sigmoid focal loss (arXiv 1708.02002, equation 5), as fvcore's.

    One pass computes loss and gradient as if all samples were negatives; then the few positives are
    corrected. This needs no target matrix, and autograd stores only the gradient.

    Args:
        logits: any shape, before the sigmoid, float32.
        positives: (P,) int64 flat indices of the positives; may contain duplicates.
        alpha: weight of positives; negatives have 1 - alpha. Below 0 both are 1.
        gamma: focusing exponent.
        scale: factor of the sum. Scaling here avoids a second gradient array on the CPU.

    Returns:
        A scalar; no second derivative.
    """
    return _FocalLossSum.apply(logits, positives, alpha, gamma, scale)


class _FocalLossSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, positives: Tensor, alpha: float, gamma: float, scale: float
    ) -> Tensor:
        flat = logits.detach().reshape(-1)
        of_negatives = scale * (1 - alpha if alpha >= 0 else 1.0)
        of_positives = scale * (alpha if alpha >= 0 else 1.0)
        total, gradient = _negatives(flat, gamma, of_negatives)
        places = positives.sort().values
        first = torch.ones_like(places, dtype=torch.bool)
        first[1:] = places[1:] != places[:-1]
        # Up to the weight, a positive's loss is that of a negative with the opposite logit
        x = flat[places]
        both = torch.stack((-x, x))
        of_both = both.new_empty(both.shape)
        right, wrong = _focal(both, gamma, 1.0, of_both)
        gradient[places] = of_both[0] * -of_positives
        excess = (right * of_positives).sub_(wrong, alpha=of_negatives)
        ctx.save_for_backward(gradient.view(logits.shape))
        return total + excess.mul_(first).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        if grad_output.device.type != "cpu" or grad_output != 1:  # no GPU sync
            gradient = gradient * grad_output
        return gradient, None, None, None, None


def _negatives(logits: Tensor, gamma: float, weight: float) -> tuple[Tensor, Tensor]:
    """Sum of the loss if all samples were negatives, and its gradient."""
    result = run_kernel("triton_focal_loss", logits.device, gamma, logits, weight)
    if result is not None:
        return result
    gradient = torch.empty_like(logits)
    step = CHUNK_ELEMENTS if logits.device.type == "cpu" else max(1, logits.numel())
    chunks = zip(logits.split(step), gradient.split(step), strict=True)
    sums = [_focal(x, gamma, weight, out).sum() for x, out in chunks]
    return torch.stack(sums).sum(), gradient


def _focal(x: Tensor, gamma: float, weight: float, gradient: Tensor) -> Tensor:
    """Loss of each negative, ``weight p^gamma (-log(1 - p))``. Writes its gradient,
    ``weight p^gamma (gamma (1 - p) (-log(1 - p)) + p)``, into ``gradient``."""
    p, q = x.sigmoid(), torch.neg(x, out=gradient).sigmoid_()
    # softplus(x), many times faster: x where q underflows; where q rounds to 1 the loss is at most
    # 1e-14, and its relative error does not matter
    loss = torch.maximum(q.clamp(min=1e-30).log_().neg_(), x)
    q.mul_(loss).mul_(gamma).add_(p)
    power = p.pow_(gamma).mul_(weight)
    gradient.mul_(power)  # gradient holds q
    return loss.mul_(power)
