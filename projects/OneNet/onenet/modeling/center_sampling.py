"""One-to-many matching: FCOS's center sampling."""

from __future__ import annotations

import torch

from ..structures import DensePredictions, Matches, Targets
from .costs import level_range, level_serves
from .matcher import check_samples

__all__ = ["match_centers"]


@torch.no_grad()
def match_centers(predictions: DensePredictions, targets: Targets, radius: float) -> Matches:
    """Gives each object the samples around its centre, as FCOS does (arXiv 1904.01355).

    They lie inside its box, within ``radius`` strides of its centre, and the farthest of its sides
    is 4 to 8 strides away (on the finest level 0 to 8, on the coarsest 4 and more), so that a box
    whose half side is near such a limit has samples on two levels. An object without any has the
    sample nearest to its centre, on the level that serves its half side. A sample that several
    objects want goes to the smallest of them.

    Args:
        predictions: of N images; its anchors are squares of the stride.
        targets: their objects.
        radius: in strides (sides of the anchor).

    Returns:
        Each sample of an image appears once at most; not in the objects' order.

    Raises:
        ValueError: there are objects, but no samples.
    """
    check_samples(predictions, targets)
    anchors, boxes = predictions.anchors, targets.boxes
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).t()[..., None]  # (M, 1) each
    strides = anchors[:, 2:3] - anchors[:, :1]  # (M, 1)
    shortest, longest = level_range(anchors)
    images, samples, objects = [], [], []
    start = 0
    for image, count in enumerate(targets.counts):
        gt = boxes[start : start + count]
        if count:
            x1, y1, x2, y2 = gt.t()  # (n,) each
            distances = torch.stack((x - x1, y - y1, x2 - x, y2 - y))  # (4, M, n) to the sides
            farthest = distances.amax(dim=0)
            serves = (farthest > shortest) & (farthest <= longest)
            offsets = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
            chosen = serves & (distances.amin(dim=0) > 0) & (offsets < radius * strides)
            offsets = offsets.masked_fill(~level_serves(anchors, gt), float("inf"))
            nearest = offsets.isfinite() & (offsets == offsets.amin(dim=0))
            chosen |= nearest & ~chosen.any(dim=0)
            areas = ((x2 - x1) * (y2 - y1)).expand_as(offsets)
            smallest = areas.masked_fill(~chosen, float("inf")).argmin(dim=1)
            found = chosen.any(dim=1).nonzero().squeeze(1)
            images.append(torch.full_like(found, image))
            samples.append(found)
            objects.append(start + smallest[found])
        start += count
    none = torch.zeros(0, dtype=torch.int64, device=boxes.device)
    return Matches(*(torch.cat([none, *part]) for part in (images, samples, objects)))
