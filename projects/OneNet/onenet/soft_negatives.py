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
    """How far both corners of a box may be off so that its IoU stays at ``min_iou``.

    The least of three cases (arXiv 1808.01244, section 3.1), each the smaller root of a quadratic
    in the radius r for a box of w x h, with t = ``min_iou``:

    * one corner inwards, one outwards: (w - r)(h - r) = 2t / (1 + t) wh;
    * both inwards: (w - 2r)(h - 2r) = t wh;
    * both outwards: (w + 2r)(h + 2r) = wh / t.

    Args:
        sizes: (P, 2) widths and heights.
        min_iou: in (0, 1).

    Returns:
        (P,), in the unit of ``sizes``.
    """
    total, area = sizes.sum(dim=1), sizes.prod(dim=1)

    def root(share: float) -> Tensor:  # of (w - x)(h - x) = share * wh, the smaller one
        return (total - (total**2 - 4 * (1 - share) * area).clamp(min=0).sqrt()) / 2

    shifted = root(2 * min_iou / (1 + min_iou))
    inwards = root(min_iou) / 2
    outwards = -root(1 / min_iou) / 2
    return torch.stack((shifted, inwards, outwards)).amin(dim=0)


def negative_weights(
    anchors: Tensor, samples: Tensor, gt_boxes: Tensor, gt_classes: Tensor, num_classes: int
) -> Tensor:
    """The weight of each negative's focal loss: (1 - Y)^4 (arXiv 1904.07850, equation 1).

    Y is the largest value of the Gaussians around the positives of the class, each with a third of
    :func:`gaussian_radius` plus a sixth of the stride as its standard deviation, as in CenterNet's
    code. A Gaussian covers the samples of its positive's level, which are those with anchors of the
    same size.

    Args:
        anchors: (M, 4) corners in pixels.
        samples: (P,) the positives.
        gt_boxes: (P, 4) boxes of their objects, corners in pixels.
        gt_classes: (P,) their classes.
        num_classes: K.

    Returns:
        (M, K) in [0, 1]; 1 far from all objects, 0 at the positives.
    """
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    sizes = anchors[:, 2:] - anchors[:, :2]
    radius = gaussian_radius(gt_boxes[:, 2:] - gt_boxes[:, :2])
    sigma = radius / 3 + sizes[samples].mean(dim=1) / 6  # (P,)
    distance = torch.cdist(centers[samples], centers)  # (P, M)
    gaussian = (-(distance**2) / (2 * sigma[:, None] ** 2)).exp()
    same_level = (sizes[samples][:, None] == sizes[None]).all(dim=-1)
    heatmap = anchors.new_zeros(num_classes, len(anchors))
    heatmap.scatter_reduce_(
        0, gt_classes[:, None].expand_as(gaussian), gaussian * same_level, reduce="amax"
    )
    return (1 - heatmap.T) ** EXPONENT
