"""Learned suppression of duplicates among the best candidates, inside the network's graph."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from .errors import ConfigError
from .postprocess import Candidates, take_samples

__all__ = ["Rescoring", "build_rescoring", "pairwise_iou"]

NUM_NEIGHBOURS = 8
"""How many leading neighbours a candidate looks at: those of largest IoU."""
NUM_RELATIONS = 8
HIDDEN_DIM = 16
MAX_LOGIT = 30.0
"""Clamp what others see of a logit to +-30, so that a huge one cannot swamp their relations."""


class Rescoring(nn.Module):
    """Lowers the logits of duplicates, as learned.

    Each of an image's best (class, sample) pairs, the candidates, looks at those of its class that
    overlap its box and have a higher logit. A small network turns each such pair (IoU, logits, how
    the boxes lie to each other) into a vector; the maximum over all pairs goes into a second
    network, whose output is added to the candidate's logit.

    It starts as a soft NMS: the logit falls by 15 (IoU - 0.5) for the leading neighbour of largest
    IoU above 0.5. From there all of it is trained, by one-to-one losses of its own. No gradient
    goes into what it rests on. There is no threshold, and the operators are plain, so that it
    exports. Cf. Learning NMS (arXiv 1705.02950) and Relation Networks (arXiv 1711.11575, section
    4.3).

    Shape legend: ``N`` images, ``T`` candidates.
    """

    def __init__(
        self,
        num_candidates: int,
        init: str = "soft_nms",
        frozen: bool = False,
    ) -> None:
        """
        Args:
            num_candidates: T, how many of an image's best logits are rescored.
            init: what it starts as: "soft_nms", or "zero" for no effect.
            frozen: whether it stays that.

        Raises:
            ConfigError: the number of candidates is below 1, or there is no such start.
        """
        super().__init__()
        if num_candidates < 1:
            raise ConfigError(
                f"MODEL.ONENET.RESCORING.CANDIDATES is {num_candidates}; give a number, or 0 for no"
                " rescoring."
            )
        if init not in ("soft_nms", "zero"):
            raise ConfigError(
                f"MODEL.ONENET.RESCORING.INIT is '{init}'; choose 'soft_nms' or 'zero'."
            )
        self.num_candidates = num_candidates
        self.pair = nn.Sequential(
            nn.Linear(NUM_RELATIONS, HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(HIDDEN_DIM, HIDDEN_DIM),
            nn.ReLU(),
        )
        self.out = nn.Sequential(
            nn.Linear(HIDDEN_DIM + 1, HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(HIDDEN_DIM, 1),
        )
        if init == "soft_nms":
            self._start_as_soft_nms()
        else:
            nn.init.zeros_(self.out[2].weight)
            nn.init.zeros_(self.out[2].bias)
        self.requires_grad_(not frozen)

    @torch.no_grad()
    def _start_as_soft_nms(self) -> None:
        """The first unit of each layer computes 15 relu(IoU - 0.5); the others have no effect."""
        for layer in (self.pair[0], self.pair[2], self.out[0], self.out[2]):
            layer.weight[0].zero_()
            layer.bias[0] = 0.0
        self.pair[0].weight[0, 0], self.pair[0].bias[0] = 10.0, -5.0
        self.pair[2].weight[0, 0] = 1.0
        self.out[0].weight[0, 0] = 1.0
        self.out[2].weight[0, 0] = -1.5

    def forward(self, candidates: Candidates) -> Tensor:
        """
        Args:
            candidates: best first; of N images.

        Returns:
            (N, T) their logits, rescored, in the same order, float32.
        """
        boxes = candidates.boxes.detach().float()
        raw = candidates.logits.detach().float()
        logits = raw.nan_to_num(nan=0.0).clamp(-MAX_LOGIT, MAX_LOGIT)
        same_class = candidates.classes[:, :, None] == candidates.classes[:, None, :]
        looks_at = same_class & raw.isfinite()[:, None, :]
        # Candidates come best first: those that lead are those before
        ious = pairwise_iou(boxes).nan_to_num(nan=0.0).where(looks_at, 0.0).tril(diagonal=-1)
        ious, neighbours = ious.topk(min(NUM_NEIGHBOURS, ious.shape[2]), dim=2)  # (N, T, J)
        overlaps = ious[..., None] > 0
        # In front of the network too: behind it alone, the gradient of NaN would be NaN
        relations = _relations(logits, boxes, ious, neighbours).where(overlaps, 0.0)
        dtype = self.pair[0].weight.dtype
        pairs = self.pair(relations.to(dtype)).where(overlaps, 0.0)  # (N, T, J, H)
        own = (logits[..., None] / 10).to(dtype)
        change = self.out(torch.cat((pairs.amax(dim=2), own), dim=2))
        return raw + change.squeeze(2).float()


def build_rescoring(cfg: CfgNode) -> Rescoring | None:
    """Builds what ``cfg.MODEL.ONENET.RESCORING`` says; None where there is no rescoring.

    Raises:
        ConfigError: see :class:`Rescoring`.
    """
    node = cfg.MODEL.ONENET.RESCORING
    # Only where it is wanted: its initial weights are random numbers
    return Rescoring(node.CANDIDATES, node.INIT, node.FROZEN) if node.CANDIDATES else None


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


def _relations(logits: Tensor, boxes: Tensor, ious: Tensor, neighbours: Tensor) -> Tensor:
    """What each candidate knows of each of its neighbours.

    Args:
        logits: (N, T).
        boxes: (N, T, 4).
        ious: (N, T, J), with the neighbours.
        neighbours: (N, T, J) which candidates these are.

    Returns:
        (N, T, J, 8): IoU; tanh of the lead of the neighbour's logit; the two logits, divided by 10;
        the centres' distance in x and in y, in sides of the candidate's own box; the logarithm of
        the sides' ratio in x and in y. The last four are clamped to +-2, the distances absolute.
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1)
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    own = torch.cat((logits[..., None], centers, sides.log()), dim=2)
    theirs = take_samples(own, neighbours.flatten(1)).view(*neighbours.shape, 5)
    own = own[:, :, None].expand_as(theirs)
    difference = theirs - own
    offsets = (difference[..., 1:3] / sides[:, :, None]).abs()
    places = torch.cat((offsets, difference[..., 3:]), dim=3).clamp(-2, 2)
    scalars = (ious[..., None], difference[..., :1].tanh(), own[..., :1] / 10, theirs[..., :1] / 10)
    return torch.cat((*scalars, places), dim=3)
