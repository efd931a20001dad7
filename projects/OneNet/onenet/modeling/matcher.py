"""Assignment of objects to samples: minimum cost and Hungarian.

Shape legend: ``M`` samples (locations or anchors), ``n`` objects of an image, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable

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
Registry for matchers, which assign objects to samples.

The registered object is called with `obj(cfg)` and returns a :class:`Matcher`.
"""

CostFunction = Callable[[Tensor, Tensor, Tensor, Instances], Tensor]
Pairs = tuple[Tensor, Tensor]


class Matcher:
    """Base class of matchers, which assign each object of an image to one sample.

    Subclasses implement :meth:`match`. Costs are computed without gradient, in float32, in chunks
    of :attr:`max_chunk_elements`, so that memory does not grow with M x n. Costs that are not
    finite (predictions of NaN or inf, GIoU of coincident zero-area boxes) rank last.
    """

    max_chunk_elements = 2**18
    """(sample, object) pairs per chunk: few enough that intermediate results stay in CPU caches. A
    GPU takes 8 times as many."""

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
        """Builds the cost of ``cfg.MODEL.ONENET.MATCHER``."""
        return {"cost": build_cost(cfg)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cost={self.cost})"

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, gt_instances: list[Instances]) -> list[Pairs]:
        """Matches a batch and returns the pairs image by image.

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
        """Assigns each object to one sample.

        Args:
            predictions: of N images.
            targets: the images' objects.
        """
        raise NotImplementedError

    def _cheapest(
        self, predictions: DensePredictions, targets: Targets, image: int, at_most: int
    ) -> Pairs:
        """Costs (n, k), ascending, +inf if not finite, and indices of the k = min(at_most, n, M)
        cheapest samples of each of an image's n objects."""
        gt, logits = targets.instances[image], predictions.pred_logits[image]
        boxes, (num_samples, device) = predictions.pred_boxes[image], (len(logits), logits.device)
        k = min(len(gt), num_samples, at_most)
        elements = self.max_chunk_elements * (1 if device.type == "cpu" else 8)
        step = max(1, elements // max(1, num_samples))
        # Allocated first: chunks kept until the end would fragment the memory
        costs = torch.empty(len(gt), k, device=device)
        samples = torch.empty(len(gt), k, dtype=torch.int64, device=device)
        for start in range(0, len(gt), step):
            part = slice(start, start + step)
            objects = gt if step >= len(gt) else gt[part]
            cost = self.cost(logits, boxes, predictions.anchors, objects)
            costs[part], samples[part] = _lowest(cost.t(), k)
        return costs, samples


def check_samples(predictions: DensePredictions, targets: Targets) -> None:
    """Checks that there are samples if there are objects.

    Raises:
        ValueError: there are objects, but no samples.
    """
    if len(targets.boxes) > 0 and predictions.pred_logits.shape[1] == 0:
        raise ValueError(
            f"{len(targets.boxes)} objects are to be matched, but there are no samples: all of"
            " the head's feature maps are empty."
        )


@ONENET_MATCHER_REGISTRY.register()
class MinCostMatcher(Matcher):
    """Assigns each object to the sample of minimum cost (paper, section 3.1).

    Objects are independent: two may take the same sample (see
    :class:`onenet.modeling.criterion.Criterion`). Ties are broken arbitrarily; an object without a
    finite cost takes any sample. Does not synchronise with the device.
    """

    @torch.no_grad()
    def match(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """See :meth:`Matcher.match`; all objects are matched.

        Raises:
            ValueError: there are objects, but no samples.
        """
        check_samples(predictions, targets)
        images = range(len(targets.instances))
        best = [self._cheapest(predictions, targets, i, 1)[1].flatten() for i in images]
        objects = torch.arange(len(targets.boxes), device=targets.images.device)
        return Matches(targets.images, torch.cat(best), objects)


@ONENET_MATCHER_REGISTRY.register()
class HungarianMatcher(Matcher):
    """The exact one-to-one assignment of minimum total cost (DETR, arXiv 2005.12872).

    No two objects share a sample. With more objects than samples, M objects are matched at minimum
    total cost and the others are left out. So are objects for which no sample of finite cost is
    left, as few as possible.

    Only each object's n cheapest samples matter: the other n - 1 objects cannot take all of these,
    so an object assigned elsewhere could move to a free one at no higher cost. Usually far fewer
    suffice: first only the :attr:`few` cheapest are copied to the host, once a batch; an image for
    which they do not prove the optimum is solved again with n.
    """

    few = 16
    """Number of cheapest samples per object that are tried first."""

    @torch.no_grad()
    def match(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """See :meth:`Matcher.match`; at most min(n, M) objects of an image are matched."""
        num_samples, counts = predictions.pred_logits.shape[1], targets.counts
        images = range(len(counts))
        found = [self._cheapest(predictions, targets, i, self.few) for i in images]
        pairs, start = [np.zeros((3, 0), np.int64)], 0
        for i, n, known in zip(images, counts, _to_host(found), strict=True):
            enough = min(n, num_samples)
            if enough:
                assigned = _assign(*known, known[0].shape[1] == enough)
                if assigned is None:
                    (known,) = _to_host([self._cheapest(predictions, targets, i, n)])
                    assigned = _assign(*known, True)
                samples, objects = assigned
                pairs.append(np.stack([np.full_like(objects, i), samples, objects + start]))
            start += n
        columns = torch.as_tensor(np.concatenate(pairs, axis=1))
        return Matches(*to_device(columns, targets.boxes.device))


def _to_host(found: list[Pairs]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Copies the costs and samples of several images to the host in one transfer."""
    costs, samples = (torch.cat([x.flatten() for x in part]) for part in zip(*found, strict=True))
    table = torch.stack((costs.view(torch.int32), samples.int())).cpu().numpy()
    shapes = [tuple(costs.shape) for costs, _ in found]
    tables = np.split(table, np.cumsum([n * k for n, k in shapes])[:-1], axis=1)
    return [
        (costs.view(np.float32).reshape(shape), samples.reshape(shape))
        for shape, (costs, samples) in zip(shapes, tables, strict=True)
    ]


def _lowest(costs: Tensor, k: int) -> Pairs:
    """The k lowest costs of each row (t, M), ascending, and their indices; +inf for costs that are
    not finite.
    """
    inf = float("inf")
    costs = costs.nan_to_num(nan=inf, posinf=inf, neginf=inf)
    if k == 1:
        return costs.min(dim=1, keepdim=True)  # faster
    return costs.topk(k, dim=1, largest=False)


def _assign(
    costs: np.ndarray, samples: np.ndarray, complete: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """The samples and objects (ascending) of the assignment of minimum total cost; None if it may
    need more than the (n, k) cheapest samples, which ``complete`` rules out."""
    num_gt, finite = len(costs), np.isfinite(costs)
    if finite[:, 0].all() and len(np.unique(samples[:, 0])) == num_gt:
        return samples[:, 0].astype(np.int64), np.arange(num_gt)
    costs = costs.astype(np.float64)
    least, most = (f(costs[finite], initial=0.0) for f in (np.min, np.max))
    # So high that as few objects as possible are left out
    missing = most + num_gt * (most - least + 1)
    weights = np.where(finite, costs, missing)
    names, nodes = np.unique(samples, return_inverse=True)
    matrix = np.full((num_gt, len(names)), missing)
    np.put_along_axis(matrix, nodes.reshape(samples.shape), weights, axis=1)
    if not complete:
        # An object's other samples cost at least as much as its last one here. A column of its own
        # stands for them: if the optimum uses none of these, it is the optimum over all samples.
        others = np.full((num_gt, num_gt), missing)
        np.fill_diagonal(others, weights[:, -1])
        matrix = np.concatenate((matrix, others), axis=1)
    objects, chosen = linear_sum_assignment(matrix)
    kept = matrix[objects, chosen] < missing
    objects, chosen = objects[kept], chosen[kept]
    if (chosen >= len(names)).any():
        return None
    return names[chosen].astype(np.int64), objects


def build_matcher(cfg: CfgNode) -> Matcher:
    """Builds the matcher ``cfg.MODEL.ONENET.MATCHER.NAME``.

    Raises:
        ConfigError: no matcher of that name is registered.
    """
    name = cfg.MODEL.ONENET.MATCHER.NAME
    return get_registered(ONENET_MATCHER_REGISTRY, name, "MODEL.ONENET.MATCHER.NAME")(cfg)
