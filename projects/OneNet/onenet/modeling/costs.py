"""What it costs to assign an object to a sample (paper, section 3.1): cost terms and their sum.

Shape legend, here and in :mod:`onenet.modeling.matcher`: ``M`` samples (locations or anchors),
``n`` objects, ``K`` classes. Every cost is a float32 matrix of shape (M, n), the transpose of one
with a row an object, as the search for an object's best sample runs; lower is better.
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
Registry for matching costs: what it costs to assign an object to a sample.

The registered class has `from_config(cfg)`, which returns an object with two methods of
:class:`WeightedCost`: `terms(...)` and the call, which gives their sum.
"""


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
    if pred_logits.shape[1] <= len(gt_classes):
        return _focal(pred_logits.t(), alpha, gamma)[gt_classes].t()  # each class once
    return _focal(pred_logits.t()[gt_classes], alpha, gamma).t()


def _focal(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    p = logits.float().sigmoid()
    q = 1 - p
    negative = (q + 1e-8).log_().mul_(p**gamma).mul_(1 - alpha)
    return negative.sub_((p + 1e-8).log_().mul_(q.pow_(gamma)), alpha=alpha)


def image_scale(image_size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """What box corners are divided by for the L1 cost.

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
    return torch.cdist(gt_boxes.float() / scale, pred_boxes.float() / scale, p=1).t()


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
    # A coordinate at a time, each operator along memory
    x1, y1, x2, y2 = pred_boxes.float().t().contiguous()[:, None]  # (1, M)
    gt_x1, gt_y1, gt_x2, gt_y2 = gt_boxes.float().t()[..., None]  # (n, 1)
    width, height, gt_width, gt_height = x2 - x1, y2 - y1, gt_x2 - gt_x1, gt_y2 - gt_y1
    overlap_x = torch.minimum(x2, gt_x2).sub_(torch.maximum(x1, gt_x1))
    overlap_y = torch.minimum(y2, gt_y2).sub_(torch.maximum(y1, gt_y1))
    # What encloses two intervals is as long as both together, but for their (signed) overlap
    around_x, around_y = (width + gt_width).sub_(overlap_x), (height + gt_height).sub_(overlap_y)
    enclosing = around_x.mul_(around_y)
    intersection = overlap_x.clamp_(min=0).mul_(overlap_y.clamp_(min=0))
    union = (width * height + gt_width * gt_height).sub_(intersection)
    # -GIoU = -(intersection / union - (enclosing - union) / enclosing)
    return intersection.div_(union).add_(union.div_(enclosing)).neg_().add_(1).t()


@dataclass(frozen=True)
class WeightedCost:
    """Base of the costs: a sum of weighted terms.

    A subclass has :meth:`terms`.

    Attributes:
        class_weight: weight of :func:`focal_cost`; 0 gives the paper's assignment by location
            alone.
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
        """The weighted terms of the cost, by name; they add up to it.

        Args:
            pred_logits: (M, K), before the sigmoid.
            pred_boxes: (M, 4) corners in pixels.
            anchors: (M, 4) corners in pixels; see :class:`onenet.structures.DensePredictions`.
            gt: n objects with ``gt_boxes`` and ``gt_classes``; its ``image_size`` is the image's
                own, before padding.

        Returns:
            (M, n) float32 each; not finite where the prediction is not.
        """
        raise NotImplementedError

    def __call__(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> Tensor:
        """Cost of every pair in one image, (M, n): the sum of :meth:`terms`."""
        first, *others = self.terms(pred_logits, pred_boxes, anchors, gt).values()
        return functools.reduce(torch.add, others, first)

    def _class_term(self, pred_logits: Tensor, gt: Instances) -> Tensor:
        return self.class_weight * focal_cost(
            pred_logits, gt.gt_classes, self.focal_alpha, self.focal_gamma
        )


@ONENET_COST_REGISTRY.register()
@dataclass(frozen=True)
class MatchingCost(WeightedCost):
    """The weighted sum of classification, L1 and GIoU cost of the predicted boxes (equation 1)."""

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
        """See :meth:`WeightedCost.__call__`; a single kernel on a GPU, where Triton works."""
        if type(self).terms is MatchingCost.terms:  # a subclass with others is not the kernel's
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
        """The boxes that L1 and GIoU are of."""
        return pred_boxes


@ONENET_COST_REGISTRY.register()
@dataclass(frozen=True)
class AnchorCost(MatchingCost):
    """:class:`MatchingCost` with the anchors in place of the predicted boxes (paper, section 4.2).

    The predefined location cost of anchor heads: fixed before training. With ``class_weight`` 0
    the assignment never changes.
    """

    def _located(self, pred_boxes: Tensor, anchors: Tensor) -> Tensor:
        return anchors


@ONENET_COST_REGISTRY.register()
@dataclass(frozen=True)
class PointCost(WeightedCost):
    """Distance of the location from the object's centre (paper, section 4.2).

    The predefined location cost of point heads. The term "l1" is the L1 distance of the two points,
    x and y divided by the image's own width and height; there is no "giou". On several levels, told
    apart by the size of their anchors, an object has the locations of one level alone, by FCOS's
    rule (arXiv 1904.01355, section 3.2): that of stride s serves objects whose longer half side is
    in (4s, 8s], the finest also smaller and the coarsest also larger ones; elsewhere the cost is
    +inf.
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
    """Another cost, but +inf where the anchor's centre does not lie inside the object.

    Early in a training the predictions say little of where an object is; its place does. The
    samples whose centre is nearest to the object's centre are always candidates, so that no object
    is without one.

    Attributes:
        cost: of the candidates.
    """

    cost: WeightedCost

    def terms(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> dict[str, Tensor]:
        """The cost's own, and "prior": 0 for candidates, else +inf."""
        candidates = self.candidates(anchors, gt.gt_boxes.tensor)
        prior = torch.zeros(candidates.shape, device=anchors.device)
        prior.masked_fill_(~candidates, float("inf"))
        return {**self.cost.terms(pred_logits, pred_boxes, anchors, gt), "prior": prior}

    def __call__(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> Tensor:
        """Cost of every pair in one image, (M, n)."""
        candidates = self.candidates(anchors, gt.gt_boxes.tensor)
        cost = self.cost(pred_logits, pred_boxes, anchors, gt)
        return cost.masked_fill(~candidates, float("inf"))

    def candidates(self, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """Which samples an object may have.

        Args:
            anchors: (M, 4) corners in pixels.
            gt_boxes: (n, 4) corners in pixels.

        Returns:
            (M, n) bool, with at least one True in each column.
        """
        x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).t()  # (M,)
        x1, y1, x2, y2 = gt_boxes.t()[..., None]  # (n, 1)
        left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # (n, M), as costs lie in memory
        inside = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom)) >= 0
        offset_x = left.sub_(right).abs_().div_(2)  # to the box's centre
        offset_y = top.sub_(bottom).abs_().div_(2)
        distance = offset_x.square_().add_(offset_y.square_())
        return (inside | (distance == distance.amin(dim=1, keepdim=True))).t()


def level_serves(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """Whether a square anchor's level serves an object's size, by FCOS's rule: (M, n) bool."""
    half_sides = (gt_boxes[:, 2:] - gt_boxes[:, :2]).amax(dim=1) / 2  # (n,)
    lower, upper = level_range(anchors)
    return (half_sides > lower) & (half_sides <= upper)


def level_range(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """FCOS's distances that a square anchor's level serves: (M, 1) above which, up to which.

    They are 4 and 8 strides; without a lower limit on the finest level, an upper on the coarsest.
    """
    strides = anchors[:, 2:3] - anchors[:, :1]
    lower = torch.where(strides == strides.amin(), -1.0, 4 * strides)
    upper = torch.where(strides == strides.amax(), float("inf"), 8 * strides)
    return lower, upper


# Cost and head, and the cost that is meant
_MISMATCHED = {
    ("PointCost", "RetinaNetHead"): "AnchorCost",
    ("AnchorCost", "FCOSHead"): "PointCost",
    ("AnchorCost", "PointHead"): "PointCost",
}


def build_cost(cfg: CfgNode) -> WeightedCost | SpatialPrior:
    """Builds the cost that ``cfg.MODEL.ONENET.MATCHER.COST`` names, with its spatial prior.

    Raises:
        ConfigError: no cost of that name is registered, it is not for the config's head, or there
            is no such prior.
    """
    name, head = cfg.MODEL.ONENET.MATCHER.COST, cfg.MODEL.ONENET.HEAD.NAME
    # Heads that are not ours pass: they know what their anchors are.
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
