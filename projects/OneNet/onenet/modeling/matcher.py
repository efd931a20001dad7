"""Which samples stand for which object: minimum-cost and Hungarian assignment, and one-to-many.

Shape legend: ``M`` samples (locations or anchors), ``n`` objects of an image, ``T`` of a batch,
``K`` classes, ``P`` matched pairs of a batch.
"""

from __future__ import annotations

import functools
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

from ..structures import DensePredictions, Matches, Targets, to_device
from ..utils.registry import get_registered
from ..utils.tracing import may_look
from .costs import MatchingCost, build_cost, level_range, level_serves

__all__ = [
    "ONENET_MATCHER_REGISTRY",
    "HungarianMatcher",
    "Matcher",
    "MinCostMatcher",
    "build_matcher",
    "match_centers",
]

ONENET_MATCHER_REGISTRY = Registry("ONENET_MATCHER")
ONENET_MATCHER_REGISTRY.__doc__ = """
Registry for matchers: which sample is the positive one of which object.

The registered object is called with `obj(cfg)` and returns a :class:`Matcher`.
"""

SMALL = 2**19
"""Number of pairs of a batch below which a CPU, too, computes the costs of all images together."""
LONG = 2**13
"""Number of samples from which on a CPU looks for an object's cheapest in two steps."""
BLOCK = 32
"""Number of samples of which the first step knows the lowest cost alone."""

CostFunction = Callable[[Tensor, Tensor, Tensor, Instances], Tensor]
Pairs = tuple[Tensor, Tensor]


class Matcher:
    """Base of the matchers. A matcher assigns each object of an image to one sample.

    A subclass has :meth:`match`. Costs are computed without gradient, in float32, for as many
    objects at a time as fit :attr:`max_chunk_elements`, so that memory does not grow with M x T. A
    cost that is not finite (a prediction of NaN or inf, the GIoU of coincident zero-area boxes)
    counts as worse than any finite one.
    """

    max_chunk_elements = 2**21
    """Largest number of (sample, object) pairs whose cost is in memory at once."""

    @configurable
    def __init__(self, *, cost: CostFunction | None = None) -> None:
        """
        Args:
            cost: maps (M, K) logits, (M, 4) boxes, (M, 4) anchors and the Instances of n objects
                to the (M, n) cost; by default the paper's
                :class:`onenet.modeling.costs.MatchingCost`. If its attribute ``batched`` is True,
                its ``of_batch`` is used (see there) on a GPU and for small batches.
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
        targets = Targets.of(gt_instances, predictions.pred_logits.device)
        return self.match(predictions, targets).by_image(targets.counts)

    def match(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """Gives each object one sample.

        Args:
            predictions: of N images.
            targets: their objects.
        """
        raise NotImplementedError

    def _cheapest(
        self, predictions: DensePredictions, targets: Targets, k: int
    ) -> tuple[Tensor, Tensor]:
        """Each object's k cheapest samples: costs and indices, both (T, min(k, M)), best first."""
        k = min(k, predictions.pred_logits.shape[1])
        none = predictions.pred_logits.new_empty((0, k), dtype=torch.float32)
        # A loop would keep some objects' costs while those of the next are computed
        found = map(functools.partial(lowest, k=k), self._rows(predictions, targets))
        values, samples = zip((none, none.long()), *found, strict=True)
        return torch.cat(values), torch.cat(samples)

    def _rows(self, predictions: DensePredictions, targets: Targets) -> Iterator[Tensor]:
        """Yields the costs of some objects at a time, in order: (t, M)."""
        logits, boxes = predictions.pred_logits, predictions.pred_boxes
        step = max(1, self.max_chunk_elements // max(1, logits.shape[1]))
        together = logits.device.type == "cuda" or len(targets.boxes) * logits.shape[1] < SMALL
        if together and getattr(self.cost, "batched", False):
            # Many small images cost no more calls than a large one.
            for start in range(0, len(targets.boxes), step):
                yield self.cost.of_batch(predictions, targets, slice(start, start + step))
            return
        for i, gt in enumerate(targets.instances):
            image = (logits[i], boxes[i], predictions.anchors)
            for start in range(0, len(gt), step):
                part = gt if step >= len(gt) else gt[start : start + step]
                yield self.cost(*image, part).t()


def _check_samples(predictions: DensePredictions, targets: Targets) -> None:
    if len(targets.boxes) > 0 and predictions.pred_logits.shape[1] == 0:
        raise ValueError(
            f"{len(targets.boxes)} objects are to be matched, but there are no samples: all of"
            " the head's feature maps are empty."
        )


@torch.no_grad()
def match_centers(predictions: DensePredictions, targets: Targets, radius: float) -> Matches:
    """Gives each object the samples around its centre, as FCOS does (arXiv 1904.01355).

    They lie inside its box, within ``radius`` strides of its centre, and the farthest of its sides
    is 4 to 8 strides away (on the finest level 0 to 8, on the coarsest 4 and more), so that a box
    whose half side is near such a limit has samples on two levels. An object without any has the
    sample nearest to its centre, on the level that serves its half side. A sample that several
    objects want goes to the smallest of them.

    Args:
        predictions: of N images; its anchors are squares of the stride.
        targets: their objects.
        radius: in strides (sides of the anchor).

    Returns:
        Each sample of an image appears once at most; not in the objects' order.

    Raises:
        ValueError: there are objects, but no samples.
    """
    _check_samples(predictions, targets)
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


@ONENET_MATCHER_REGISTRY.register()
class MinCostMatcher(Matcher):
    """Each object takes the sample of minimum cost (paper, section 3.1).

    Objects choose independently: two of them may take the same sample (a collision; the criterion
    says what becomes of it). Of equal costs any may win. Where no cost of an object is finite it
    takes some sample. The device is not waited for.
    """

    @torch.no_grad()
    def match(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """See :meth:`Matcher.match`; all T objects are matched.

        Raises:
            ValueError: there are objects, but no samples.
        """
        _check_samples(predictions, targets)
        _, samples = self._cheapest(predictions, targets, 1)
        objects = torch.arange(len(targets.boxes), device=targets.images.device)
        return Matches(targets.images, samples.view(len(samples)), objects)


@ONENET_MATCHER_REGISTRY.register()
class HungarianMatcher(Matcher):
    """The one-to-one assignment of minimum total cost, exactly (DETR, arXiv 2005.12872).

    No two objects share a sample. With more objects than samples M objects are matched, those of
    least total cost, and the others are left out. So are objects for which no sample of finite cost
    is left; there are as few of them as can be.

    Only each object's n cheapest samples matter: were an object assigned outside its n cheapest in
    some optimum, at least one of these would be free, since the other n - 1 objects cannot hold
    them all, and moving there costs no more. Mostly far fewer do. So at first only :attr:`few`
    leave the device, once a batch; the optimum among these is that of all if its prices prove it,
    and else the image is computed again, with n.
    """

    few = 16
    """How many of an object's cheapest samples are looked at first."""

    @torch.no_grad()
    def match(self, predictions: DensePredictions, targets: Targets) -> Matches:
        """See :meth:`Matcher.match`; at most min(n, M) objects of an image are matched."""
        num_samples, counts = predictions.pred_logits.shape[1], targets.counts
        few = min(max(counts, default=0), self.few)
        table = _to_host(*self._cheapest(predictions, targets, few))
        pairs, start = [], 0
        for i, n in enumerate(counts):
            if n == 0:
                continue
            assigned = _assign(*(part[start : start + n, :n] for part in table), num_samples)
            if assigned is None:
                whole = self._cheapest(*_only(i, predictions, targets), n)
                assigned = _assign(*_to_host(*whole), num_samples)
            samples, objects = assigned
            pairs.append(np.stack([np.full_like(objects, i), samples, objects + start]))
            start += n
        columns = np.concatenate([np.zeros((3, 0), np.int64), *pairs], axis=1)
        return Matches(*to_device(torch.as_tensor(columns), targets.boxes.device))


def lowest(costs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k lowest of each row, ascending; what is not finite is worse than any that is.

    On a CPU long rows take two steps: the k lowest lie in those k blocks of a row whose minima are
    lowest, or behind the last block, and a minimum is found sooner than where it lies.

    Args:
        costs: (t, M); are not changed.
        k: at most M.

    Returns:
        values (t, k), +inf for what is not finite; index (t, k) int64 of each in its row.
    """
    inf = float("inf")
    num, device = costs.shape[1], costs.device
    blocks = num // BLOCK
    if num >= LONG and 4 * k <= blocks and may_look(costs):
        # Block j has the costs j, j + blocks, j + 2 blocks ..., so that minima run along memory
        inside, outside = costs.split((blocks * BLOCK, num - blocks * BLOCK), dim=1)
        minima = inside.unflatten(1, (BLOCK, blocks)).amin(dim=1)
        if (torch.cat((minima, outside), dim=1) > -inf).all():  # False for NaN
            chosen = minima.topk(k, dim=1, largest=False).indices
            steps = torch.arange(0, blocks * BLOCK, blocks, device=device)
            members = (chosen[:, None, :] + steps[:, None]).flatten(1)
            behind = torch.arange(blocks * BLOCK, num, device=device).expand(len(costs), -1)
            members = torch.cat((members, behind), dim=1)
            values, places = costs.gather(1, members).topk(k, dim=1, largest=False)
            return values, members.gather(1, places)
    costs = costs.nan_to_num(nan=inf, posinf=inf, neginf=inf)
    if k == 1:
        return costs.min(dim=1, keepdim=True)  # faster
    return costs.topk(k, dim=1, largest=False)


def _only(
    image: int, predictions: DensePredictions, targets: Targets
) -> tuple[DensePredictions, Targets]:
    """A batch of one of its images."""
    logits = predictions.pred_logits[image : image + 1]
    boxes = predictions.pred_boxes[image : image + 1]
    one = Targets.of([targets.instances[image]], logits.device)
    return DensePredictions.of(logits, boxes, predictions.anchors, predictions.level_sizes), one


def _to_host(costs: Tensor, samples: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both (T, k) as arrays, in one transfer."""
    packed = torch.stack([costs.float().view(torch.int32), samples.int()]).cpu().numpy()
    return packed[0].view(np.float32), packed[1]


def _assign(
    costs: np.ndarray, samples: np.ndarray, num_samples: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The assignment of minimum total cost.

    Args:
        costs: (n, k) of each object's k cheapest samples, ascending; k <= n.
        samples: (n, k) their indices.
        num_samples: M.

    Returns:
        sample_indices, gt_indices; the latter ascend. None where more columns have to be known.
    """
    num_gt, k = costs.shape
    complete = k == min(num_gt, num_samples)
    if k == 0 or len(np.unique(samples[:, 0])) == num_gt:
        objects, columns = np.arange(num_gt if k else 0), np.zeros(num_gt if k else 0, np.int64)
    else:
        if not complete and num_gt > num_samples:
            return None
        weights = _replace_infinite(costs)
        names, nodes = np.unique(samples, return_inverse=True)
        nodes = nodes.reshape(samples.shape)
        dense = num_gt * len(names) <= DENSE or np.ptp(weights) > LARGEST_SPREAD
        solved = (_solve_dense if dense else _solve_sparse)(weights, nodes, len(names))
        if solved is None:
            return None
        objects, columns = solved
        if not complete:
            # Whose last one is not finite, has no finite ones but these
            bounds = np.where(np.isfinite(costs[:, -1]), weights[:, -1], np.inf)
            found = len(columns) == num_gt and (columns >= 0).all()
            if not (found and np.isfinite(costs[objects, columns]).all()):
                return None
            if not _proves_optimum(weights, nodes, columns, len(names), bounds):
                return None
    finite = np.isfinite(costs[objects, columns])
    return samples[objects, columns][finite], objects[finite]


DENSE = 2**14
"""Largest number of entries of a matrix that is solved as such."""
LARGEST_SPREAD = 1e9
"""Costs that differ by more are solved so too: float64 then has too few digits for SciPy's sparse
solver, which might never end."""


def _solve_dense(
    weights: np.ndarray, nodes: np.ndarray, num_nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The assignment of minimum total cost among some edges of each object.

    Args:
        weights: (n, k) finite costs, float64.
        nodes: (n, k) the sample of each, numbered from 0.
        num_nodes: how many samples there are.

    Returns:
        Objects, ascending, and the column of each one's sample; -1 for an object that has none,
        since others have all of its own.
    """
    missing = weights.max() + len(weights) * (np.ptp(weights) + 1.0)
    dense = np.full((len(weights), num_nodes), missing)
    np.put_along_axis(dense, nodes, weights, axis=1)
    objects, chosen = linear_sum_assignment(dense)
    of_object = nodes[objects] == chosen[:, None]
    return objects, np.where(of_object.any(axis=1), of_object.argmax(axis=1), -1)


def _solve_sparse(
    weights: np.ndarray, nodes: np.ndarray, num_nodes: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """As :func:`_solve_dense`, for a matrix that is not small; None where not all objects can have
    a sample.
    """
    num_gt, k = nodes.shape
    # The solver takes a stored zero for a missing edge: shift, which changes no optimum, since
    # every full matching has n edges.
    edges = ((weights - weights.min() + 1.0).ravel(), nodes.ravel(), np.arange(num_gt + 1) * k)
    try:
        graph = csr_matrix(edges, shape=(num_gt, num_nodes))
        objects, chosen = min_weight_full_bipartite_matching(graph)
    except ValueError:  # it has no full matching
        return None
    return objects, (nodes[objects] == chosen[:, None]).argmax(axis=1)


def _proves_optimum(
    weights: np.ndarray,
    nodes: np.ndarray,
    columns: np.ndarray,
    num_nodes: int,
    bounds: np.ndarray,
) -> bool:
    """Whether an optimum among some edges is one among all, of which these are the cheapest.

    By linear programming's duality: with a price of at most 0 for each sample, 0 if it is free, an
    object that minimises cost minus price at its own sample pays ``u``; where all do, the
    assignment is an optimum. Edges that are not known cost the object's bound at least, and their
    price is 0 at most: so it suffices that no ``u`` is above that. The largest prices are shortest
    paths (Bellman-Ford).

    Args:
        weights, nodes, num_nodes: see :func:`_solve_dense`.
        columns: (n,) which of an object's edges is taken.
        bounds: (n,) what the edges that are not known cost at least.
    """
    rows = np.arange(len(weights))
    own, taken = weights[rows, columns], nodes[rows, columns]
    prices = np.zeros(num_nodes)
    for _ in range(len(weights) + 1):
        paid = own - prices[taken]
        before = prices.copy()
        np.minimum.at(prices, nodes, weights - paid[:, None])
        if (before - prices).max() <= 1e-9:
            free = np.ones(num_nodes, dtype=bool)
            free[taken] = False
            return bool((paid <= bounds + 1e-9).all() and (prices[free] >= -1e-9).all())
    return False


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
