"""Matching costs (paper, section 3.1): cost terms and their weighted sum.

Shape legend, here and in :mod:`onenet.modeling.matcher`: ``M`` samples (locations or anchors),
``n`` objects, ``K`` classes. A cost is a float32 matrix (M, n), lower is better. In memory it
is a contiguous (n, M) matrix, so that the search for an object's best sample is fast.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor

from ..utils.errors import ConfigError
from ..utils.registry import get_registered
from .ops.kernels import run_kernel

__all__ = [
    "ONENET_COST_REGISTRY",
    "AnchorCost",
    "MatchingCost",
    "PointCost",
    "SpatialPrior",
    "WeightedCost",
    "build_cost",
    "focal_cost",
    "giou_cost",
    "image_scale",
    "l1_cost",
]

ONENET_COST_REGISTRY = Registry("ONENET_COST")
ONENET_COST_REGISTRY.__doc__ = """
Registry for matching costs, the cost of assigning an object to a sample.

The registered class has `from_config(cfg)`, which returns an object with two methods of
:class:`WeightedCost`: `terms(...)` and the call, which gives their sum.
"""


def focal_cost(
    pred_logits: Tensor, gt_classes: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Classification cost: the change of focal loss if the sample became positive.

    With ``p`` the sigmoid score of the object's class at the sample, it is
    ``alpha (1-p)^gamma (-log p) - (1-alpha) p^gamma (-log(1-p))``. 1e-8 inside the logarithms keeps
    saturated scores finite, as in the authors' code. Only the objects' classes are computed: memory
    is O(M n), not O(M K).

    Args:
        pred_logits: (M, K), before the sigmoid.
        gt_classes: (n,) integers in [0, K).
        alpha: weight of the positive term.
        gamma: focusing exponent.

    Returns:
        (M, n) float32.
    """
    if pred_logits.shape[1] <= len(gt_classes):
        return _focal(pred_logits.t(), alpha, gamma)[gt_classes].t()  # computes each class once
    return _focal(pred_logits.t()[gt_classes], alpha, gamma).t()


def _focal(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    p = logits.float().sigmoid()
    q = 1 - p
    negative = (q + 1e-8).log_().mul_(p**gamma).mul_(1 - alpha)
    return negative.sub_((p + 1e-8).log_().mul_(q.pow_(gamma)), alpha=alpha)


def image_scale(image_size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """The divisor of box corners in the L1 cost.

    Args:
        image_size: (height, width) in pixels, before padding.
        device: of the result.

    Returns:
        (4,) float32: width, height, width, height.
    """
    height, width = image_size
    return torch.tensor([width, height, width, height], dtype=torch.float32, device=device)


def l1_cost(pred_boxes: Tensor, gt_boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """L1 distance of box corners, divided by the image's width and height.

    Args:
        pred_boxes: (M, 4) corners ``x1, y1, x2, y2`` in pixels.
        gt_boxes: (n, 4) likewise.
        image_size: (height, width) in pixels, before padding.

    Returns:
        (M, n) float32.
    """
    scale = image_scale(image_size, pred_boxes.device)
    return torch.cdist(gt_boxes.float() / scale, pred_boxes.float() / scale, p=1).t()


def giou_cost(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Negative generalized IoU (arXiv 1902.09630) of every pair.

    It is NaN (0/0) for two coincident boxes of zero area; the matchers rank NaN last.

    Args:
        pred_boxes: (M, 4) corners ``x1, y1, x2, y2`` in pixels.
        gt_boxes: (n, 4) likewise.

    Returns:
        (M, n) float32 in [-1, 1].
    """
    # One coordinate at a time, so that each operator reads contiguous memory
    x1, y1, x2, y2 = pred_boxes.float().t().contiguous()[:, None]  # (1, M)
    gt_x1, gt_y1, gt_x2, gt_y2 = gt_boxes.float().t()[..., None]  # (n, 1)
    width, height, gt_width, gt_height = x2 - x1, y2 - y1, gt_x2 - gt_x1, gt_y2 - gt_y1
    overlap_x = torch.minimum(x2, gt_x2).sub_(torch.maximum(x1, gt_x1))
    overlap_y = torch.minimum(y2, gt_y2).sub_(torch.maximum(y1, gt_y1))
    # Length of the enclosing interval: the sum of both lengths minus the (signed) overlap
    around_x, around_y = (width + gt_width).sub_(overlap_x), (height + gt_height).sub_(overlap_y)
    enclosing = around_x.mul_(around_y)
    intersection = overlap_x.clamp_(min=0).mul_(overlap_y.clamp_(min=0))
    union = (width * height + gt_width * gt_height).sub_(intersection)
    # -GIoU = -(intersection / union - (enclosing - union) / enclosing)
    return intersection.div_(union).add_(union.div_(enclosing)).neg_().add_(1).t()


@dataclass(frozen=True)
class WeightedCost:
    """Base class of matching costs: a sum of weighted terms.

    Subclasses implement :meth:`terms`.

    Attributes:
        class_weight: weight of :func:`focal_cost`; 0 for assignment by location only.
        l1_weight: weight of the L1 term.
        giou_weight: weight of the GIoU term.
        focal_alpha: alpha of the classification cost.
        focal_gamma: gamma of the classification cost.
    """

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> WeightedCost:
        """Builds the cost with the weights of ``cfg.MODEL.ONENET.MATCHER``."""
        onenet = cfg.MODEL.ONENET
        return cls(
            class_weight=onenet.MATCHER.CLASS_WEIGHT,
            l1_weight=onenet.MATCHER.L1_WEIGHT,
            giou_weight=onenet.MATCHER.GIOU_WEIGHT,
            focal_alpha=onenet.FOCAL_ALPHA,
            focal_gamma=onenet.FOCAL_GAMMA,
        )

    def terms(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> dict[str, Tensor]:
        """Weighted cost terms by name; the cost is their sum.

        Args:
            pred_logits: (M, K), before the sigmoid.
            pred_boxes: (M, 4) corners in pixels.
            anchors: (M, 4) corners in pixels; see :class:`onenet.structures.DensePredictions`.
            gt: n objects with ``gt_boxes`` and ``gt_classes``; ``image_size`` is that of the image
                before padding.

        Returns:
            (M, n) float32 each; not finite if the prediction is not.
        """
        raise NotImplementedError

    def __call__(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> Tensor:
        """Cost of every pair of an image, (M, n): the sum of :meth:`terms`."""
        first, *others = self.terms(pred_logits, pred_boxes, anchors, gt).values()
        return functools.reduce(torch.add, others, first)

    def _class_term(self, pred_logits: Tensor, gt: Instances) -> Tensor:
        return self.class_weight * focal_cost(
            pred_logits, gt.gt_classes, self.focal_alpha, self.focal_gamma
        )


@ONENET_COST_REGISTRY.register()
@dataclass(frozen=True)
class MatchingCost(WeightedCost):
    """Weighted classification, L1 and GIoU cost of the predicted boxes (paper, equation 1)."""

    def terms(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> dict[str, Tensor]:
        """See :meth:`WeightedCost.terms`; "class", "l1" and "giou"."""
        boxes, gt_boxes = self._located(pred_boxes, anchors), gt.gt_boxes.tensor
        return {
            "class": self._class_term(pred_logits, gt),
            "l1": l1_cost(boxes, gt_boxes, gt.image_size).mul_(self.l1_weight),
            "giou": giou_cost(boxes, gt_boxes).mul_(self.giou_weight),
        }

    def __call__(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> Tensor:
        """See :meth:`WeightedCost.__call__`; one Triton kernel on a GPU if available."""
        if type(self).terms is MatchingCost.terms:  # the kernel has these terms only
            weights = (self.class_weight, self.l1_weight, self.giou_weight, self.focal_alpha)
            boxes = self._located(pred_boxes, anchors)
            arguments = (pred_logits, boxes, gt, *weights)
            cost = run_kernel(
                "triton_matching_cost", pred_logits.device, self.focal_gamma, *arguments
            )
            if cost is not None:
                return cost
        return super().__call__(pred_logits, pred_boxes, anchors, gt)

    def _located(self, pred_boxes: Tensor, anchors: Tensor) -> Tensor:
        """The boxes of the L1 and GIoU terms."""
        return pred_boxes


@ONENET_COST_REGISTRY.register()
@dataclass(frozen=True)
class AnchorCost(MatchingCost):
    """:class:`MatchingCost` of the anchors instead of the predicted boxes (paper, section 4.2).

    The predefined location cost of anchor heads. With ``class_weight`` 0 the assignment is fixed
    before training.
    """

    def _located(self, pred_boxes: Tensor, anchors: Tensor) -> Tensor:
        return anchors


@ONENET_COST_REGISTRY.register()
@dataclass(frozen=True)
class PointCost(WeightedCost):
    """Distance between location and object centre (paper, section 4.2).

    The predefined location cost of point heads. The term "l1" is the L1 distance of the two points,
    divided by the image's width and height; there is no "giou". With several levels an object has
    the locations of one level only, by FCOS's rule (arXiv 1904.01355, section 3.2): stride s serves
    objects whose longer half side is in (4s, 8s], the finest level also smaller and the coarsest
    also larger ones. On other levels the cost is +inf.
    """

    def terms(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> dict[str, Tensor]:
        """See :meth:`WeightedCost.terms`; "class" and "l1" only."""
        locations = (anchors[:, :2] + anchors[:, 2:]).float() / 2  # (M, 2)
        scale = image_scale(gt.image_size, anchors.device)[:2]
        distance = torch.cdist(locations / scale, gt.gt_boxes.get_centers().float() / scale, p=1)
        distance = distance.masked_fill(~level_serves(anchors, gt.gt_boxes.tensor), float("inf"))
        return {"class": self._class_term(pred_logits, gt), "l1": self.l1_weight * distance}


@dataclass(frozen=True)
class SpatialPrior:
    """Restricts a cost to samples inside the object: +inf if the anchor's centre is outside.

    Early in training, predictions say little about where an object is. The samples nearest to the
    object's centre are always candidates, so that every object has one.

    Attributes:
        cost: the cost of the candidates.
    """

    cost: WeightedCost

    def terms(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> dict[str, Tensor]:
        """The terms of ``cost``, and "prior": 0 for candidates, else +inf."""
        candidates = self.candidates(anchors, gt.gt_boxes.tensor)
        prior = torch.zeros(candidates.shape, device=anchors.device)
        prior.masked_fill_(~candidates, float("inf"))
        return {**self.cost.terms(pred_logits, pred_boxes, anchors, gt), "prior": prior}

    def __call__(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> Tensor:
        """Cost of every pair of an image, (M, n)."""
        candidates = self.candidates(anchors, gt.gt_boxes.tensor)
        cost = self.cost(pred_logits, pred_boxes, anchors, gt)
        return cost.masked_fill(~candidates, float("inf"))

    def candidates(self, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """The samples that may be matched to each object.

        Args:
            anchors: (M, 4) corners in pixels.
            gt_boxes: (n, 4) corners in pixels.

        Returns:
            (M, n) bool, with at least one True in each column.
        """
        x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).t()  # (M,)
        x1, y1, x2, y2 = gt_boxes.t()[..., None]  # (n, 1)
        left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # (n, M), as costs in memory
        inside = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom)) >= 0
        offset_x = left.sub_(right).abs_().div_(2)  # to the box's centre
        offset_y = top.sub_(bottom).abs_().div_(2)
        distance = offset_x.square_().add_(offset_y.square_())
        return (inside | (distance == distance.amin(dim=1, keepdim=True))).t()


def level_serves(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """(M, n) bool: whether a sample's level serves the object's size, by FCOS's rule."""
    half_sides = (gt_boxes[:, 2:] - gt_boxes[:, :2]).amax(dim=1) / 2  # (n,)
    lower, upper = level_range(anchors)
    return (half_sides > lower) & (half_sides <= upper)


def level_range(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper distance, (M, 1) each, that a sample's level serves in FCOS.

    They are 4 and 8 strides (sides of the square anchor); the finest level has no lower limit and
    the coarsest no upper one.
    """
    strides = anchors[:, 2:3] - anchors[:, :1]
    lower = torch.where(strides == strides.amin(), -1.0, 4 * strides)
    upper = torch.where(strides == strides.amax(), float("inf"), 8 * strides)
    return lower, upper


# (cost, head): the predefined location cost for that head
_MISMATCHED = {
    ("PointCost", "RetinaNetHead"): "AnchorCost",
    ("AnchorCost", "FCOSHead"): "PointCost",
    ("AnchorCost", "PointHead"): "PointCost",
}


def build_cost(cfg: CfgNode) -> WeightedCost | SpatialPrior:
    """Builds the cost ``cfg.MODEL.ONENET.MATCHER.COST``, with the spatial prior ``PRIOR`` if set.

    Raises:
        ConfigError: the cost is not registered or not meant for the config's head, or the prior is
            unknown.
    """
    name, head = cfg.MODEL.ONENET.MATCHER.COST, cfg.MODEL.ONENET.HEAD.NAME
    # Heads of users are not checked
    if (name, head) in _MISMATCHED:
        raise ConfigError(
            f"MODEL.ONENET.MATCHER.COST is '{name}', which does not go with MODEL.ONENET.HEAD.NAME"
            f" '{head}'; the predefined location cost of that head is '{_MISMATCHED[name, head]}'."
        )
    cost = get_registered(ONENET_COST_REGISTRY, name, "MODEL.ONENET.MATCHER.COST")
    cost = cost.from_config(cfg)
    prior = cfg.MODEL.ONENET.MATCHER.PRIOR
    if prior not in ("", "box"):
        raise ConfigError(f"MODEL.ONENET.MATCHER.PRIOR is '{prior}'; choose 'box', or '' for none.")
    return SpatialPrior(cost) if prior else cost
