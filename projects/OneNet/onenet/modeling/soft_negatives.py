"""CenterNet's softened negatives (arXiv 1904.07850, section 3), for the ablation.

Shape legend: ``M`` samples, ``K`` classes, ``P`` matched pairs of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gaussian_radius", "negative_weights"]

MIN_IOU = 0.7
EXPONENT = 4  # CenterNet's beta


def gaussian_radius(sizes: Tensor, min_iou: float = MIN_IOU) -> Tensor:
    """Radius of CenterNet's Gaussians, as in its published code.

    With t = ``min_iou`` and s = w + h it is sqrt(t^2 s^2 + 4 t (1 - t) w h) - t s: 4 t times the
    distance by which both corners may lie outside the box at IoU t (arXiv 1808.01244, section 3.1),
    since the code omits the division by twice the quadratic's leading coefficient. Its two other
    cases are then never the minimum and are omitted here. Unlike the code, this does not round down
    to whole strides, which would leave small objects without softening.

    Args:
        sizes: (P, 2) widths and heights.
        min_iou: in (0, 1).

    Returns:
        (P,), in the unit of ``sizes``.
    """
    t, total, area = min_iou, sizes.sum(dim=1), sizes.prod(dim=1)
    return (t**2 * total**2 + 4 * t * (1 - t) * area).sqrt() - t * total


def negative_weights(
    anchors: Tensor,
    level_sizes: tuple[int, ...],
    samples: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    num_classes: int,
) -> Tensor:
    """Weight (1 - Y)^4 of each negative's focal loss (arXiv 1904.07850, equation 1).

    Y is the maximum of the Gaussians around the positives of the class. Their standard deviation is
    a third of :func:`gaussian_radius` plus a sixth of the anchor's side, as in CenterNet's code. A
    Gaussian covers only its positive's level.

    Args:
        anchors: (M, 4) corners in pixels.
        level_sizes: number of samples of each level; they add up to M.
        samples: (P,) the positives.
        gt_boxes: (P, 4) boxes of their objects, corners in pixels.
        gt_classes: (P,) their classes.
        num_classes: K.

    Returns:
        (M, K) in [0, 1]; 1 far from all objects, 0 at the positives.
    """
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    sides = (anchors[samples, 2:] - anchors[samples, :2]).mean(dim=1)  # (P,)
    radius = gaussian_radius(gt_boxes[:, 2:] - gt_boxes[:, :2])
    sigma = radius / 3 + sides / 6
    # The faster matrix product is too inaccurate for small distances
    distance = torch.cdist(
        centers[samples], centers, compute_mode="donot_use_mm_for_euclid_dist"
    )  # (P, M)
    gaussian = (-(distance**2) / (2 * sigma[:, None] ** 2)).exp()
    ends = torch.tensor(level_sizes, device=anchors.device).cumsum(0)
    levels = torch.bucketize(torch.arange(len(anchors), device=anchors.device), ends, right=True)
    gaussian = gaussian * (levels[samples][:, None] == levels)
    heatmap = anchors.new_zeros(num_classes, len(anchors))
    heatmap.scatter_reduce_(0, gt_classes[:, None].expand_as(gaussian), gaussian, reduce="amax")
    return (1 - heatmap.T) ** EXPONENT
