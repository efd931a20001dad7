"""What it costs to assign an object to a sample (paper, section 3.1): the parts and their sum.

Shape legend, here and in :mod:`onenet.matcher`: ``M`` samples (locations or anchors), ``n``
objects, ``K`` classes. Every cost is a float32 matrix of shape (M, n); lower is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import generalized_box_iou

__all__ = ["MatchingCost", "focal_cost", "giou_cost", "image_scale", "l1_cost"]


def focal_cost(
    pred_logits: Tensor, gt_classes: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """The classification cost: what focal loss would change if the sample became positive.

    With ``p`` the sigmoid score of the object's class at the sample,
    ``alpha (1-p)^gamma (-log p) - (1-alpha) p^gamma (-log(1-p))``, where 1e-8 inside the logarithms
    keeps saturated scores finite (as in the authors' code). Only the objects' own classes are
    looked up, so that memory is O(M n) and not O(M K).

    Args:
        pred_logits: (M, K), before the sigmoid.
        gt_classes: (n,) integers in [0, K).
        alpha: weight of the positive term.
        gamma: focusing exponent.

    Returns:
        (M, n) float32.
    """
    p = pred_logits[:, gt_classes].float().sigmoid()
    positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    return positive - negative


def image_scale(image_size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """What box corners are divided by for the L1 cost and loss.

    Args:
        image_size: (height, width) in pixels, before padding.
        device: where the result lies.

    Returns:
        (4,) float32: width, height, width, height.
    """
    height, width = image_size
    return torch.tensor([width, height, width, height], dtype=torch.float32, device=device)


def l1_cost(pred_boxes: Tensor, gt_boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """L1 distance of the corners, each coordinate divided by the image's own width or height.

    Args:
        pred_boxes: (M, 4) corners ``x1, y1, x2, y2`` in pixels.
        gt_boxes: (n, 4) likewise.
        image_size: (height, width) in pixels, before padding.

    Returns:
        (M, n) float32.
    """
    scale = image_scale(image_size, pred_boxes.device)
    return torch.cdist(pred_boxes.float() / scale, gt_boxes.float() / scale, p=1)


def giou_cost(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Minus the generalized IoU (arXiv 1902.09630) of every pair.

    Two coincident boxes of zero area have no IoU (0/0): their cost is NaN, which the matchers
    treat as worse than any number.

    Args:
        pred_boxes: (M, 4) corners ``x1, y1, x2, y2`` in pixels.
        gt_boxes: (n, 4) likewise.

    Returns:
        (M, n) float32 in [-1, 1].
    """
    return -generalized_box_iou(pred_boxes.float(), gt_boxes.float())


@dataclass(frozen=True)
class MatchingCost:
    """The weighted sum of classification, L1 and GIoU cost (paper, equation 1).

    Attributes:
        class_weight: weight of :func:`focal_cost`.
        l1_weight: weight of :func:`l1_cost`.
        giou_weight: weight of :func:`giou_cost`.
        focal_alpha: alpha of the classification cost.
        focal_gamma: gamma of the classification cost.
    """

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0

    def __call__(self, pred_logits: Tensor, pred_boxes: Tensor, gt: Instances) -> Tensor:
        """Cost of every pair in one image.

        Args:
            pred_logits: (M, K), before the sigmoid.
            pred_boxes: (M, 4) corners in pixels.
            gt: n objects with ``gt_boxes`` and ``gt_classes``; its ``image_size`` is the image's
                own, before padding.

        Returns:
            (M, n) float32; not finite where the prediction is not.
        """
        gt_boxes = gt.gt_boxes.tensor
        cost_class = focal_cost(pred_logits, gt.gt_classes, self.focal_alpha, self.focal_gamma)
        cost_l1 = l1_cost(pred_boxes, gt_boxes, gt.image_size)
        cost_giou = giou_cost(pred_boxes, gt_boxes)
        return (
            self.class_weight * cost_class + self.l1_weight * cost_l1 + self.giou_weight * cost_giou
        )
