"""Learned rescoring of the best samples, in sight of each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..postprocess import best_pairs, take_samples
from .build import DensePredictions

__all__ = ["PairwiseRescoring", "pairwise_iou"]

EMBEDDING_DIM = 16
HIDDEN_DIM = 16
NUM_NEIGHBOURS = 16
"""How many others a candidate looks at: all of them would take many times as long."""
MOST = 30.0
"""Logits are cut to this for the network's eyes, so that one of inf spoils no other."""


class PairwiseRescoring(nn.Module):
    """Changes the best logits of an image by what overlaps them.

    A head's convolutions do not see where other boxes came to lie. Here each of an image's best
    (class, sample) pairs, the candidates, looks at those others of its class whose boxes overlap
    its own most: at their IoU, lead in the logit, likeness of features, offset and ratio of sides.
    A small network makes a vector of each such pair; the vectors' maximum and their sum, weighted
    by IoU, go into a second one, whose number is added to the candidate's logit. It is trained with
    everything else, by the one-to-one losses. What it learns is to tell a duplicate from a
    neighbour, which NMS decides by one threshold on the IoU.

    After networks that learn NMS (arXiv 1705.02950; arXiv 1711.11575, section 4.3), but smaller. It
    has no threshold, and consists of plain operators, so that it exports.
    """

    def __init__(self, in_channels: int, num_candidates: int, num_anchors: int = 1) -> None:
        """
        Args:
            in_channels: of the features.
            num_candidates: how many of an image's logits may change; the others stay.
            num_anchors: A, samples a location.
        """
        super().__init__()
        self.num_candidates = num_candidates
        self.num_anchors = num_anchors
        self.embed = nn.Conv2d(in_channels, EMBEDDING_DIM, kernel_size=1)
        self.pair = nn.Sequential(
            nn.Linear(7, HIDDEN_DIM), nn.ReLU(), nn.Linear(HIDDEN_DIM, HIDDEN_DIM), nn.ReLU()
        )
        self.out = nn.Sequential(
            nn.Linear(2 * HIDDEN_DIM + EMBEDDING_DIM + 1, 2 * HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(2 * HIDDEN_DIM, 1),
        )
        nn.init.zeros_(self.out[2].weight)  # at first the logits stay as they are
        nn.init.zeros_(self.out[2].bias)

    def embeddings(self, features: list[Tensor]) -> list[Tensor]:
        """What candidates tell each other by: (N, D, H, W) for each level's (N, C, H, W)."""
        return [self.embed(x) for x in features]

    def forward(self, predictions: DensePredictions, embeddings: list[Tensor]) -> DensePredictions:
        """
        Args:
            predictions: of N images.
            embeddings: (N, D, H, W) of each level, of :meth:`embeddings`.

        Returns:
            The same with other ``pred_logits``. No gradient goes into the boxes.
        """
        logits = predictions.pred_logits
        num_classes = logits.shape[2]
        _, index = best_pairs(logits.detach(), self.num_candidates)  # (N, T)
        flat = logits.flatten(1)
        raw = flat.gather(1, index)
        known = raw.isfinite()
        scores = raw.float().nan_to_num(nan=0.0).clamp(-MOST, MOST)  # what others get to see
        samples, classes = index // num_classes, index % num_classes
        with torch.no_grad():
            boxes = predictions.boxes.at(samples).float()
        maps = torch.cat([x.flatten(2) for x in embeddings], dim=2).transpose(1, 2)  # (N, L, D)
        own = take_samples(maps, samples // self.num_anchors).float()

        ious = pairwise_iou(boxes).nan_to_num(nan=0.0)  # (N, T, T); NaN overlaps nothing
        related = classes[:, :, None] == classes[:, None, :]
        related &= index[:, :, None] != index[:, None, :]
        related &= known[:, None, :]  # nor is NaN a neighbour
        ious = torch.where(related, ious, 0.0)
        ious, neighbours = ious.topk(min(NUM_NEIGHBOURS, ious.shape[2]), dim=2)  # (N, T, J)
        dtype = self.pair[0].weight.dtype
        overlap = ious[..., None] > 0
        # In front of the network too: behind it alone, the gradient of NaN would be NaN
        relations = _relations(scores, boxes, own, ious, neighbours).where(overlap, 0.0)
        pairs = self.pair(relations.to(dtype)).float().where(overlap, 0.0)
        around = torch.cat((pairs.amax(dim=2), (pairs * ious[..., None]).sum(dim=2)), dim=2)
        change = self.out(torch.cat((around, own, scores[..., None]), dim=2).to(dtype))
        changed = raw + change.squeeze(2).to(raw.dtype)
        flat = flat.scatter(1, index, changed)
        return predictions._replace(pred_logits=flat.view_as(logits))


def pairwise_iou(boxes: Tensor) -> Tensor:
    """IoU of every two boxes of an image; 0 for two without area.

    Args:
        boxes: (N, T, 4) corners in pixels.

    Returns:
        (N, T, T).
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    areas = sides[..., 0] * sides[..., 1]
    top_left = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    bottom_right = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    common = (bottom_right - top_left).clamp(min=0)
    intersection = common[..., 0] * common[..., 1]
    union = areas[:, :, None] + areas[:, None, :] - intersection
    return intersection / union.clamp(min=1e-6)


def _relations(
    scores: Tensor, boxes: Tensor, features: Tensor, ious: Tensor, neighbours: Tensor
) -> Tensor:
    """What is known of each candidate and each of its neighbours.

    Args:
        scores: (N, T) logits.
        boxes: (N, T, 4).
        features: (N, T, D).
        ious: (N, T, J), with the neighbours.
        neighbours: (N, T, J) which candidates these are.

    Returns:
        (N, T, J, 7): IoU; tanh of the lead of the neighbour's logit; likeness (cosine) of the
        features; the centres' distance in x and in y, in sides of the candidate's own box; the
        logarithm of the sides' ratio in x and in y. The last four are absolute, and at most 2.
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1)
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    log_sides = sides.log()
    unit = F.normalize(features, dim=2, eps=1e-3)
    known = torch.cat((scores[..., None], centers, log_sides, unit), dim=2)
    theirs = take_samples(known, neighbours.flatten(1)).view(*neighbours.shape, known.shape[2])
    lead = (theirs[..., 0] - scores[..., None]).tanh()
    likeness = (theirs[..., 5:] * unit[:, :, None]).sum(dim=3)
    offsets = (theirs[..., 1:3] - centers[:, :, None]) / sides[:, :, None]
    ratios = theirs[..., 3:5] - log_sides[:, :, None]
    places = torch.cat((offsets, ratios), dim=3).abs().clamp(max=2)
    return torch.cat((torch.stack((ious, lead, likeness), dim=3), places), dim=3)
