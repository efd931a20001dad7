"""One-to-many matching: FCOS's center sampling."""

from __future__ import annotations

import torch

from ..structures import DensePredictions, Matches, Targets
from .costs import level_range, level_serves
from .matcher import check_samples

__all__ = ["match_centers"]


@torch.no_grad()
def match_centers(predictions: DensePredictions, targets: Targets, radius: float) -> Matches:
    """Matches each object to the samples around its centre, as FCOS does (arXiv 1904.01355).

    A sample is positive if it lies inside the box, within ``radius`` strides of its centre, and the
    farthest side of the box is 4 to 8 strides away (0 to 8 on the finest level, 4 and more on the
    coarsest). So objects between two levels have positives on both. An object without a positive
    takes the sample nearest to its centre on the level of its size. A sample of several objects
    goes to the smallest one.

    Args:
        predictions: of N images; anchors are squares with the stride as side.
        targets: the images' objects.
        radius: in strides.

    Returns:
        The matches; each sample of an image appears at most once. Not sorted by object.

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
