"""Which sample stands for which object: minimum-cost and Hungarian assignment.

Shape legend: ``M`` samples (locations or anchors), ``n`` objects of an image, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..structures import DensePredictions, Matches, Targets, to_device
from ..utils.registry import get_registered
from .costs import MatchingCost, build_cost

__all__ = [
    "ONENET_MATCHER_REGISTRY",
    "HungarianMatcher",
    "Matcher",
    "MinCostMatcher",
    "build_matcher",
    "check_samples",
]

ONENET_MATCHER_REGISTRY = Registry("ONENET_MATCHER")
ONENET_MATCHER_REGISTRY.__doc__ = """
Registry for matchers: which sample is the positive one of which object.

The registered object is called with `obj(cfg)` and returns a :class:`Matcher`.
"""

CostFunction = Callable[[Tensor, Tensor, Tensor, Instances], Tensor]
Pairs = tuple[Tensor, Tensor]


class Matcher:
    """Base of the matchers. A matcher assigns each object of an image to one sample.

    A subclass has :meth:`match`. Costs are computed without gradient, in float32, for as many
    objects at a time as fit :attr:`max_chunk_elements`, so that memory does not grow with M x n. A
    cost that is not finite (a prediction of NaN or inf, the GIoU of coincident zero-area boxes)
    counts as worse than any finite one.
    """

    max_chunk_elements = 2**17
    """Number of (sample, object) pairs whose cost is computed at once: so few that intermediate
    results stay in a CPU's caches. A GPU takes 16 times as many."""

    @configurable
    def __init__(self, *, cost: CostFunction | None = None) -> None:
        """
        Args:
            cost: maps (M, K) logits, (M, 4) boxes, (M, 4) anchors and the Instances of n objects
                to the (M, n) cost; by default the paper's
                :class:`onenet.modeling.costs.MatchingCost`.
        """
        self.cost = MatchingCost() if cost is None else cost

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Builds the cost that ``cfg.MODEL.ONENET.MATCHER`` tells."""
        return {"cost": build_cost(cfg)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cost={self.cost})"

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, gt_instances: list[Instances]) -> list[Pairs]:
        """Matches a batch and tells the pairs image by image.

        Args:
            predictions: of N images.
            gt_instances: N Instances with ``gt_boxes`` and ``gt_classes``.

        Returns:
            For each image ``(sample_indices, gt_indices)``, two int64 vectors of equal length on
            the predictions' device; ``gt_indices`` ascends. Both are empty for an image without
            objects.
        """
        targets = Targets.from_instances(gt_instances, predictions.pred_logits.device)
        return self.match(predictions, targets).by_image(targets.counts)

    def match(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """Gives each object one sample.

        Args:
            predictions: of N images.
            targets: their objects.
        """
        raise NotImplementedError

    def _cheapest(
        self, predictions: DensePredictions, targets: Targets, at_most: int | None = None
    ) -> Iterator[Pairs]:
        """Yields the cheapest samples of each image's n objects: costs and indices, best first.

        Args:
            predictions: of N images.
            targets: their objects.
            at_most: the largest k; by default n.

        Yields:
            (n, k) +inf for what is not finite, and (n, k) int64; k is at most M.
        """
        logits, boxes = predictions.pred_logits, predictions.pred_boxes
        num_samples, device = logits.shape[1], logits.device
        elements = self.max_chunk_elements * (1 if device.type == "cpu" else 16)
        step = max(1, elements // max(1, num_samples))
        for i, gt in enumerate(targets.instances):
            k = min(len(gt) if at_most is None else at_most, num_samples)
            # To be filled: pieces that are kept until the end would lie between those freed
            costs = torch.empty(len(gt), k, device=device)
            samples = torch.empty(len(gt), k, dtype=torch.int64, device=device)
            for start in range(0, len(gt), step):
                part = slice(start, start + step)
                objects = gt if step >= len(gt) else gt[part]
                cost = self.cost(logits[i], boxes[i], predictions.anchors, objects)
                costs[part], samples[part] = _lowest(cost.t(), k)
            yield costs, samples


def check_samples(predictions: DensePredictions, targets: Targets) -> None:
    """Raises where objects are to be matched, but there are no samples.

    Raises:
        ValueError: says so.
    """
    if len(targets.boxes) > 0 and predictions.pred_logits.shape[1] == 0:
        raise ValueError(
            f"{len(targets.boxes)} objects are to be matched, but there are no samples: all of"
            " the head's feature maps are empty."
        )


@ONENET_MATCHER_REGISTRY.register()
class MinCostMatcher(Matcher):
    """Each object takes the sample of minimum cost (paper, section 3.1).

    Objects choose independently: two of them may take the same sample (a collision; the criterion
    says what becomes of it). Of equal costs any may win. Where no cost of an object is finite it
    takes some sample. The device is not waited for.
    """

    @torch.no_grad()
    def match(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """See :meth:`Matcher.match`; all objects are matched.

        Raises:
            ValueError: there are objects, but no samples.
        """
        check_samples(predictions, targets)
        best = [samples.flatten() for _, samples in self._cheapest(predictions, targets, 1)]
        objects = torch.arange(len(targets.boxes), device=targets.images.device)
        return Matches(targets.images, torch.cat(best), objects)


@ONENET_MATCHER_REGISTRY.register()
class HungarianMatcher(Matcher):
    """The one-to-one assignment of minimum total cost, exactly (DETR, arXiv 2005.12872).

    No two objects share a sample. With more objects than samples M objects are matched, those of
    least total cost, and the others are left out. So are objects for which no sample of finite cost
    is left; there are as few of them as can be.

    Only each object's n cheapest samples leave the device, once a batch. They are enough: were an
    object assigned outside its n cheapest in some optimum, one of these would be free, since the
    other n - 1 objects cannot hold them all, and moving there costs no more.
    """

    @torch.no_grad()
    def match(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """See :meth:`Matcher.match`; at most min(n, M) objects of an image are matched."""
        found = list(self._cheapest(predictions, targets))
        shapes = [costs.shape for costs, _ in found]
        flat = [torch.cat([x.flatten() for x in part]) for part in zip(*found, strict=True)]
        table = torch.stack((flat[0].view(torch.int32), flat[1].int())).cpu().numpy()
        tables = np.split(table, np.cumsum([n * k for n, k in shapes])[:-1], axis=1)
        pairs, start = [np.zeros((3, 0), np.int64)], 0
        for i, ((n, k), image) in enumerate(zip(shapes, tables, strict=True)):
            if n and k:
                costs, samples = image[0].view(np.float32).reshape(n, k), image[1].reshape(n, k)
                samples, objects = _assign(costs, samples)
                pairs.append(np.stack([np.full_like(objects, i), samples, objects + start]))
            start += n
        columns = torch.as_tensor(np.concatenate(pairs, axis=1))
        return Matches(*to_device(columns, targets.boxes.device))


def _lowest(costs: Tensor, k: int) -> Pairs:
    """The k lowest of each row (t, M), ascending, and where they are; +inf for what is not finite,
    which is worse than any that is.
    """
    inf = float("inf")
    costs = costs.nan_to_num(nan=inf, posinf=inf, neginf=inf)
    if k == 1:
        return costs.min(dim=1, keepdim=True)  # faster
    return costs.topk(k, dim=1, largest=False)


def _assign(costs: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The assignment of minimum total cost.

    Args:
        costs: (n, k) of each object's cheapest samples, ascending.
        samples: (n, k) their indices.

    Returns:
        sample_indices, gt_indices; the latter ascend.
    """
    finite = np.isfinite(costs)
    if finite[:, 0].all() and len(np.unique(samples[:, 0])) == len(samples):
        return samples[:, 0].astype(np.int64), np.arange(len(samples))
    costs = costs.astype(np.float64)
    least, most = (f(costs[finite], initial=0.0) for f in (np.min, np.max))
    # More than any assignment has to pay for other samples instead
    missing = most + len(costs) * (most - least + 1)
    names, nodes = np.unique(samples, return_inverse=True)
    matrix = np.full((len(costs), len(names)), missing)
    weights = np.where(finite, costs, missing)
    np.put_along_axis(matrix, nodes.reshape(samples.shape), weights, axis=1)
    objects, chosen = linear_sum_assignment(matrix)
    kept = matrix[objects, chosen] < missing
    return names[chosen[kept]].astype(np.int64), objects[kept]


def build_matcher(cfg: CfgNode) -> Matcher:
    """Builds the matcher that ``cfg.MODEL.ONENET.MATCHER.NAME`` names.

    Raises:
        ConfigError: no matcher of that name is registered.
    """
    name = cfg.MODEL.ONENET.MATCHER.NAME
    return get_registered(ONENET_MATCHER_REGISTRY, name, "MODEL.ONENET.MATCHER.NAME")(cfg)
