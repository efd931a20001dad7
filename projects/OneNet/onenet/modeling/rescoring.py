"""A learned rescoring module that suppresses duplicates among the top candidates."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..structures import Candidates, DensePredictions
from ..utils.errors import ConfigError
from .postprocess import select_candidates

__all__ = ["Rescoring", "build_rescoring", "pairwise_iou"]

STARTS = {"voting": (10.0, 1.0, 1.0), "soft_nms": (10.0, 0.0, 0.0), "zero": (0.0, 0.0, 0.0)}
"""Initial weights of suppression, votes and share, by name."""
UNITS = (500.0, 10.0, 10.0)
"""Scale of the three weights. The parameters are the weights divided by it, so that the network's
learning rate moves them fast enough to follow the head."""
MAX_LOGIT = 30.0
"""Clamp logits to +-30 for votes, so that the logarithm of a score stays finite."""
MAX_COORDINATE = 1e6
"""In pixels; a box beyond overlaps nothing, so that areas stay finite."""


class Rescoring(nn.Module):
    """Refines the logits of an image's top candidates using their overlaps (cf. Learning NMS).

    Candidates are the best (sample, class) pairs. The overlap of two is ``o = max(0, 2 IoU - 1)``.
    Three terms with a learned weight each are added to a candidate's logit:

    * suppression: minus the largest ``o`` with a candidate of its class and a higher logit. The
      suppression of that candidate is subtracted from ``o`` first, so that duplicates suppress no
      other object, as in NMS;
    * votes: the logarithm of the sum of ``o`` times score over the candidates of its class;
    * share: the logarithm of that sum divided by the same sum over all classes.

    Initially it is a soft NMS with votes: suppression lowers a coincident candidate's logit by 10.
    The weights are trained by a one-to-one loss of their own, on detached predictions. All
    operators are exportable.

    Sources: Learning NMS (arXiv 1705.02950); parallel suppression as in Matrix NMS (arXiv
    2003.10152); votes cf. box voting (arXiv 1505.01749).

    Shape legend: ``N`` images, ``T`` candidates.
    """

    def __init__(self, num_candidates: int, init: str = "voting") -> None:
        """
        Args:
            num_candidates: T, number of best logits per image that are rescored.
            init: initial weights: "voting", "soft_nms" (suppression only), or "zero" (no effect).

        Raises:
            ConfigError: the number of candidates is below 1, or ``init`` is unknown.
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

    def rescore(self, predictions: DensePredictions, k: int) -> Candidates:
        """The T best pairs (at least k, if there are as many) with their new logits, in old order.

        Args:
            predictions: of N images.
            k: number of detections wanted.
        """
        candidates = select_candidates(predictions, max(k, self.num_candidates))
        return candidates._replace(logits=self(candidates))

    def forward(self, candidates: Candidates) -> Tensor:
        """
        Args:
            candidates: of N images, best first.

        Returns:
            (N, T) rescored logits in the order of the candidates, float32.
        """
        raw = candidates.logits.detach().float()
        scores = raw.nan_to_num(nan=-MAX_LOGIT).clamp(-MAX_LOGIT, MAX_LOGIT).sigmoid()
        # A candidate whose logit or box is not finite does not affect others
        boxes = candidates.boxes.detach().float()
        valid = raw.isfinite() & (boxes.abs() < MAX_COORDINATE).all(dim=2)
        ious = pairwise_iou(boxes.where(valid[:, :, None], 0.0))
        overlaps = (2 * ious - 1).clamp(min=0)
        same_class = candidates.classes[:, :, None] == candidates.classes[:, None, :]
        of_class = overlaps.where(same_class, 0.0)
        # No matrix product: autocast would run it in half precision. The maximum counts a
        # candidate's own vote even if its box has no area.
        votes = torch.maximum((of_class * scores[:, None]).sum(dim=2), scores).log()
        all_votes = torch.maximum((overlaps * scores[:, None]).sum(dim=2), scores).log()
        numbers = (-suppression(of_class), votes, votes - all_votes)
        terms = zip(self.weights.float(), UNITS, numbers, strict=True)
        return raw + sum(weight * unit * number for weight, unit, number in terms)


def suppression(overlaps: Tensor) -> Tensor:
    """Each candidate's largest overlap with a better one that is not suppressed itself.

    NMS is sequential. Here all candidates are suppressed in parallel, then twice more by what
    remains of the others.

    Args:
        overlaps: (N, T, T) between candidates, best first.

    Returns:
        (N, T), in the overlaps' unit.
    """
    leaders = overlaps.tril(diagonal=-1)
    result = leaders.amax(dim=2)
    for _ in range(2):
        result = (leaders - result[:, None]).amax(dim=2).clamp(min=0)
    return result


def build_rescoring(cfg: CfgNode) -> Rescoring | None:
    """Builds the module of ``cfg.MODEL.ONENET.RESCORING``; None if CANDIDATES is 0.

    Raises:
        ConfigError: see :class:`Rescoring`.
    """
    node = cfg.MODEL.ONENET.RESCORING
    return Rescoring(node.CANDIDATES, node.INIT) if node.CANDIDATES else None


def pairwise_iou(boxes: Tensor) -> Tensor:
    """IoU of every pair of boxes of an image; 0 for two boxes without area.

    Args:
        boxes: (N, T, 4) corners in pixels.

    Returns:
        (N, T, T).
    """
    # One coordinate at a time: ONNX Runtime is slow on a last axis of length 4
    left, top, right, bottom = boxes.unbind(dim=2)
    common = _common_length(left, right) * _common_length(top, bottom)
    areas = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    union = areas[:, :, None] + areas[:, None, :] - common
    return common / union.clamp(min=1e-6)


def _common_length(low: Tensor, high: Tensor) -> Tensor:
    """(N, T, T) length of the intersection of every pair of (N, T) intervals."""
    upper = torch.minimum(high[:, :, None], high[:, None, :])
    lower = torch.maximum(low[:, :, None], low[:, None, :])
    return (upper - lower).clamp(min=0)
