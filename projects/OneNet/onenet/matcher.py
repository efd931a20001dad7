"""Which samples stand for which object: minimum-cost and Hungarian assignment, and one-to-many.

Shape legend: ``M`` samples (locations or anchors), ``n`` objects, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from .costs import MatchingCost, build_cost
from .heads import DensePredictions
from .registry import get_registered

__all__ = [
    "ONENET_MATCHER_REGISTRY",
    "HungarianMatcher",
    "Matcher",
    "MinCostMatcher",
    "build_matcher",
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

    Costs are computed without gradient, in float32, for as many objects at a time as fit
    :attr:`max_chunk_elements`, so that memory does not grow with M x n. A cost that is not finite
    (a prediction of NaN or inf, the GIoU of coincident zero-area boxes) counts as worse than any
    finite one.
    """

    max_chunk_elements = 2**22
    """Largest number of (sample, object) pairs whose cost is in memory at once."""

    @configurable
    def __init__(self, *, cost: CostFunction | None = None) -> None:
        """
        Args:
            cost: maps (M, K) logits, (M, 4) boxes, (M, 4) anchors and the Instances of n objects
                to the (M, n) cost; by default the paper's :class:`onenet.costs.MatchingCost`.
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
        """Matches a batch, image by image.

        Args:
            predictions: of N images.
            gt_instances: N Instances with ``gt_boxes`` and ``gt_classes``.

        Returns:
            For each image ``(sample_indices, gt_indices)``, two int64 vectors of equal length on
            the predictions' device; ``gt_indices`` ascends. Both are empty for an image without
            objects.
        """
        return [
            self.match_image(logits, boxes, predictions.anchors, gt)
            for logits, boxes, gt in zip(
                predictions.pred_logits, predictions.pred_boxes, gt_instances, strict=True
            )
        ]

    @torch.no_grad()
    def match_many(
        self, predictions: DensePredictions, gt_instances: list[Instances], num_samples: int
    ) -> list[Pairs]:
        """Gives each object several samples, by the same cost: those that cost least.

        A sample that several objects want goes to the one that it costs least, so that an object
        may be left with fewer, or with none. Samples of infinite cost go to none.

        Args:
            predictions, gt_instances: see :meth:`__call__`.
            num_samples: how many each object may have.

        Returns:
            As :meth:`__call__`; each sample of an image appears once at most.
        """
        return [
            self._many_of_image(logits, boxes, predictions.anchors, gt, num_samples)
            for logits, boxes, gt in zip(
                predictions.pred_logits, predictions.pred_boxes, gt_instances, strict=True
            )
        ]

    def match_image(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> Pairs:
        """Matches one image; see :meth:`__call__`, without the batch axis."""
        raise NotImplementedError

    def _many_of_image(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances, k: int
    ) -> Pairs:
        if len(gt) == 0:
            empty = torch.arange(0, device=pred_logits.device)
            return empty, empty
        costs, samples = self._cheapest(pred_logits, pred_boxes, anchors, gt, k)
        objects = torch.arange(len(gt), device=samples.device).expand_as(samples)
        finite = costs.isfinite()
        costs, samples, objects = costs[finite], samples[finite], objects[finite]
        # The first entry of each sample, where its cheapest comes first
        order = costs.argsort(stable=True)
        order = order[samples[order].argsort(stable=True)]
        samples, objects = samples[order], objects[order]
        first = torch.ones_like(samples, dtype=torch.bool)
        first[1:] = samples[1:] != samples[:-1]
        samples, objects = samples[first], objects[first]
        order = objects.argsort(stable=True)
        return samples[order], objects[order]

    def _cheapest(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances, k: int
    ) -> tuple[Tensor, Tensor]:
        """Each object's k cheapest samples: costs and indices, both (min(k, M), n), best first."""
        k = min(k, len(pred_logits))
        cheapest = [
            cost.topk(k, dim=0, largest=False)
            for cost in self._cost_chunks(pred_logits, pred_boxes, anchors, gt)
        ]
        return (
            torch.cat([c.values for c in cheapest], dim=1),
            torch.cat([c.indices for c in cheapest], dim=1),
        )

    def _cost_chunks(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> Iterator[Tensor]:
        """Yields the cost's columns in order, some objects at a time, +inf where not finite."""
        step = max(1, self.max_chunk_elements // len(pred_logits))
        for start in range(0, len(gt), step):
            cost = self.cost(pred_logits, pred_boxes, anchors, gt[start : start + step])
            yield cost.masked_fill_(~cost.isfinite(), float("inf"))


@ONENET_MATCHER_REGISTRY.register()
class MinCostMatcher(Matcher):
    """Each object takes the sample of minimum cost (paper, section 3.1).

    Objects choose independently: two of them may take the same sample (a collision; the criterion
    says what becomes of it). Of equal costs the lowest index is not guaranteed to win, as with
    ``torch.argmin``. Where no cost of an object is finite it takes sample 0.
    """

    def match_image(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> Pairs:
        """Matches one image; all n objects are matched, whatever M."""
        gt_indices = torch.arange(len(gt), device=pred_logits.device)
        if len(gt) == 0:
            return gt_indices, gt_indices
        chunks = self._cost_chunks(pred_logits, pred_boxes, anchors, gt)
        return torch.cat([cost.argmin(dim=0) for cost in chunks]), gt_indices


@ONENET_MATCHER_REGISTRY.register()
class HungarianMatcher(Matcher):
    """The one-to-one assignment of minimum total cost, exactly (DETR, arXiv 2005.12872).

    No two objects share a sample. With more objects than samples M objects are matched, those of
    least total cost, and the others are left out. So are objects for which no sample of finite cost
    is left; there are as few of them as can be.

    Only each object's n cheapest samples leave the device. That loses nothing: were an object
    assigned outside its n cheapest in some optimum, at least one of these would be free, since the
    other n - 1 objects cannot hold them all, and moving there costs no more. Where no two objects
    want the same sample most, these are the optimum, since no object can have a cheaper one, and
    nothing is solved. The device is waited for once a batch.
    """

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, gt_instances: list[Instances]) -> list[Pairs]:
        """See :meth:`Matcher.__call__`; at most min(n, M) objects of an image are matched."""
        num_samples, device = predictions.pred_logits.shape[1], predictions.pred_logits.device
        cheapest = [
            self._cheapest(logits, boxes, predictions.anchors, gt, len(gt))
            for logits, boxes, gt in zip(
                predictions.pred_logits, predictions.pred_boxes, gt_instances, strict=True
            )
            if len(gt) > 0
        ]
        solved = iter([_assign(*table, num_samples) for table in _to_host(cheapest)])
        nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        return [
            tuple(
                torch.as_tensor(indices, dtype=torch.int64, device=device)
                for indices in (next(solved) if len(gt) > 0 else nothing)
            )
            for gt in gt_instances
        ]

    def match_image(
        self, pred_logits: Tensor, pred_boxes: Tensor, anchors: Tensor, gt: Instances
    ) -> Pairs:
        """Matches one image, as a batch of one."""
        batch = DensePredictions(pred_logits[None], pred_boxes[None], anchors, (len(anchors),))
        return self(batch, [gt])[0]


def _to_host(tables: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Costs and samples, both (k, n) on a device, as arrays (n, k), in one transfer for all."""
    if not tables:
        return
    flat = []
    for costs, samples in tables:
        flat += [costs.T.reshape(-1).float().view(torch.int32), samples.T.reshape(-1).int()]
    packed = torch.cat(flat).cpu().numpy()
    start = 0
    for costs, _ in tables:
        k, n = costs.shape
        both = packed[start : start + 2 * n * k].reshape(2, n, k)
        yield both[0].view(np.float32), both[1]
        start += 2 * n * k


def _assign(
    costs: np.ndarray, samples: np.ndarray, num_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """The assignment of minimum total cost.

    Args:
        costs: (n, k) of each object's k = min(n, M) cheapest samples, ascending.
        samples: (n, k) their indices.
        num_samples: M.

    Returns:
        sample_indices, gt_indices; the latter ascend.
    """
    num_gt = len(costs)
    gt_indices, sample_indices = np.arange(num_gt), samples[:, 0]
    if len(np.unique(sample_indices)) < num_gt:
        solve = _solve_dense if num_gt > num_samples else _solve_sparse
        gt_indices, sample_indices = solve(_replace_infinite(costs), samples, num_samples)
    column = (samples[gt_indices] == sample_indices[:, None]).argmax(axis=1)
    finite = np.isfinite(costs[gt_indices, column])
    return sample_indices[finite], gt_indices[finite]


def _solve_dense(
    costs: np.ndarray, samples: np.ndarray, num_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where each object has all samples. Object and sample of each pair, by object."""
    dense = np.empty_like(costs)
    np.put_along_axis(dense, samples.astype(np.int64), costs, axis=1)
    return linear_sum_assignment(dense)


def _solve_sparse(
    costs: np.ndarray, samples: np.ndarray, num_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where all objects get a sample. Object and sample of each pair, by object."""
    num_gt, k = costs.shape
    # The sparse solver takes a stored zero for a missing edge: shift, which changes no optimum,
    # since every full matching has n edges.
    graph = csr_matrix(
        ((costs - costs.min() + 1.0).ravel(), samples.ravel(), np.arange(0, num_gt * k + 1, k)),
        shape=(num_gt, num_samples),
    )
    return min_weight_full_bipartite_matching(graph)


def _replace_infinite(costs: np.ndarray) -> np.ndarray:
    """Gives +inf a number so large that no optimum has one more of them than it must; float64."""
    costs = costs.astype(np.float64)
    finite = costs[np.isfinite(costs)]
    if len(finite) == 0:
        return np.zeros_like(costs)
    spread = finite.max() - finite.min()
    return np.where(np.isfinite(costs), costs, finite.max() + len(costs) * (spread + 1.0))


def build_matcher(cfg: CfgNode) -> Matcher:
    """Builds the matcher that ``cfg.MODEL.ONENET.MATCHER.NAME`` names.

    Raises:
        ConfigError: no matcher of that name is registered.
    """
    name = cfg.MODEL.ONENET.MATCHER.NAME
    return get_registered(ONENET_MATCHER_REGISTRY, name, "MODEL.ONENET.MATCHER.NAME")(cfg)
