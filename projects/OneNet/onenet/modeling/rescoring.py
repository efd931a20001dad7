"""Learned suppression of duplicates among the best candidates, inside the network's graph."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..structures import Candidates, DensePredictions
from ..utils.errors import ConfigError
from .postprocess import select_candidates

__all__ = ["Rescoring", "build_rescoring", "pairwise_iou"]

STARTS = {"voting": (10.0, 1.0, 1.0), "soft_nms": (10.0, 0.0, 0.0), "zero": (0.0, 0.0, 0.0)}
"""What the weights of suppression, votes and share may start as."""
UNITS = (500.0, 10.0, 10.0)
"""In which the weights are kept, so that steps of the network's learning rate are large enough for
three numbers: they have to follow what the head becomes."""
MAX_LOGIT = 30.0
"""Clamp what others see of a logit to +-30: the logarithm of its score stays finite."""
MAX_COORDINATE = 1e6
"""In pixels; a box beyond counts as none: the areas of others stay finite."""


class Rescoring(nn.Module):
    """Lowers the logits of duplicates, and raises those that candidates agree on.

    Two candidates, an image's best (class, sample) pairs, overlap by ``o = max(0, 2 IoU - 1)``. To
    each candidate's logit three numbers are added, each with a learned weight:

    * suppression: its largest ``o`` with a candidate of its class that has a higher logit (a
      leader). The leader's own suppression is taken off first, so that a duplicate suppresses no
      other object, as in NMS;
    * votes: the logarithm of the sum of ``o`` times score, over the candidates of its class;
    * share: the logarithm of that sum's share in the same sum over all classes.

    It starts as a soft NMS with votes: the logit of a candidate that coincides with a leader falls
    by 10. From there the weights are trained, by a one-to-one loss of their own. No gradient goes
    into what it rests on. The operators are plain, so that it exports.

    Source: Learning NMS (arXiv 1705.02950); for suppression in parallel Matrix NMS (arXiv
    2003.10152), for votes cf. box voting (arXiv 1505.01749).

    Shape legend: ``N`` images, ``T`` candidates.
    """

    def __init__(self, num_candidates: int, init: str = "voting") -> None:
        """
        Args:
            num_candidates: T, how many of an image's best logits are rescored.
            init: what it starts as: "voting", "soft_nms" for suppression only, or "zero" for no
                effect.

        Raises:
            ConfigError: the number of candidates is below 1, or there is no such start.
        """
        super().__init__()
        if num_candidates < 1:
            raise ConfigError(
                f"MODEL.ONENET.RESCORING.CANDIDATES is {num_candidates}; give a number, or 0 for no"
                " rescoring."
            )
        if init not in STARTS:
            raise ConfigError(
                f"MODEL.ONENET.RESCORING.INIT is '{init}'; choose one of: {', '.join(STARTS)}."
            )
        self.num_candidates = num_candidates
        self.weights = nn.Parameter(torch.tensor(STARTS[init]) / torch.tensor(UNITS))

    def candidates(self, predictions: DensePredictions, k: int) -> Candidates:
        """What is rescored where k detections are wanted: the T best pairs, or k, if that is more.

        Args:
            predictions: of N images.
            k: how many detections.
        """
        return select_candidates(predictions, max(k, self.num_candidates))

    def forward(self, candidates: Candidates) -> Tensor:
        """
        Args:
            candidates: best first; of N images.

        Returns:
            (N, T) their logits, rescored, in the same order, float32.
        """
        raw = candidates.logits.detach().float()
        scores = raw.nan_to_num(nan=-MAX_LOGIT).clamp(-MAX_LOGIT, MAX_LOGIT).sigmoid()
        # Without a logit or box, it has no say
        boxes = candidates.boxes.detach().float()
        valid = raw.isfinite() & (boxes.abs() < MAX_COORDINATE).all(dim=2)
        ious = pairwise_iou(boxes.where(valid[:, :, None], 0.0))
        overlaps = (2 * ious - 1).clamp(min=0)
        same_class = candidates.classes[:, :, None] == candidates.classes[:, None, :]
        of_class = overlaps.where(same_class, 0.0)
        # Not as a matrix product, which would be in half precision under autocast. One's own vote
        # counts where the box has no area, too.
        votes = torch.maximum((of_class * scores[:, None]).sum(dim=2), scores).log()
        all_votes = torch.maximum((overlaps * scores[:, None]).sum(dim=2), scores).log()
        numbers = (-suppression(of_class), votes, votes - all_votes)
        terms = zip(self.weights.float(), UNITS, numbers, strict=True)
        return raw + sum(weight * unit * number for weight, unit, number in terms)


def suppression(overlaps: Tensor) -> Tensor:
    """How much leaders that are no duplicates themselves overlap each candidate.

    NMS goes through the candidates one by one, to know who is left to suppress others. Here all are
    suppressed at once, and then again, twice, by who is left of that.

    Args:
        overlaps: (N, T, T) of each candidate with each other, best first; only those before it
            lead.

    Returns:
        (N, T), in the overlaps' unit.
    """
    leaders = overlaps.tril(diagonal=-1)
    result = leaders.amax(dim=2)
    for _ in range(2):
        result = (leaders - result[:, None]).amax(dim=2).clamp(min=0)
    return result


def build_rescoring(cfg: CfgNode) -> Rescoring | None:
    """Builds what ``cfg.MODEL.ONENET.RESCORING`` says; None where there is no rescoring.

    Raises:
        ConfigError: see :class:`Rescoring`.
    """
    node = cfg.MODEL.ONENET.RESCORING
    return Rescoring(node.CANDIDATES, node.INIT) if node.CANDIDATES else None


def pairwise_iou(boxes: Tensor) -> Tensor:
    """IoU of every two boxes of an image; 0 for two without area.

    Args:
        boxes: (N, T, 4) corners in pixels.

    Returns:
        (N, T, T).
    """
    # By coordinate: ONNX Runtime is slow where the last axis is as short as a corner
    left, top, right, bottom = boxes.unbind(dim=2)
    common = _common_length(left, right) * _common_length(top, bottom)
    areas = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    union = areas[:, :, None] + areas[:, None, :] - common
    return common / union.clamp(min=1e-6)


def _common_length(low: Tensor, high: Tensor) -> Tensor:
    """Length, (N, T, T), of what every two of the (N, T) ranges have in common."""
    upper = torch.minimum(high[:, :, None], high[:, None, :])
    lower = torch.maximum(low[:, :, None], low[:, None, :])
    return (upper - lower).clamp(min=0)
