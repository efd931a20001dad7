"""Inference: the top-k (sample, class) pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import batched_nms

from ..structures import Candidates, DensePredictions, take_samples
from ..utils.tracing import in_graph, may_look

__all__ = [
    "best_pairs",
    "finite_only",
    "select_candidates",
    "select_top_k",
    "to_instances",
]


_MANY_CLASSES = 16
"""Number of classes from which ranking samples first is faster on a CPU."""


def best_pairs(pred_logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of each image, best first; NaN ranks last.

    Args:
        pred_logits: (N, M, K), before the sigmoid.
        k: at most; all M x K if there are fewer.

    Returns:
        (N, k) logits, -inf for NaN, and (N, k) int64 flat indices, sample x K + class.
    """
    if may_look(pred_logits):
        # torch ranks NaN first: the best logit tells whether there is any
        best = _rank(pred_logits, k)
        if not best[0][:, :1].isnan().any():
            return best
    return _rank(_nan_last(pred_logits), k)


def _rank(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As :func:`best_pairs`, but NaN ranks first, as in torch."""
    num_classes = logits.shape[2]
    if num_classes < _MANY_CLASSES:
        flat = logits.flatten(1)
        return flat.topk(min(k, flat.shape[1]), dim=1)
    # The k best pairs are in the k samples with the best maximum
    best = logits.amax(dim=2)
    samples = best.topk(min(k, best.shape[1]), dim=1).indices
    flat = take_samples(logits, samples).flatten(1)
    values, places = flat.topk(min(k, flat.shape[1]), dim=1)
    chosen = samples.gather(1, places // num_classes)
    return values, chosen * num_classes + places % num_classes


def _nan_last(logits: Tensor) -> Tensor:
    """Replaces NaN by -inf, so that it ranks last; infinities stay."""
    inf = float("inf")
    if in_graph():
        return logits.masked_fill(logits.isnan(), -inf)  # fewer operators in a graph
    return logits.nan_to_num(nan=-inf, posinf=inf, neginf=-inf)  # one pass


def select_candidates(predictions: DensePredictions, k: int) -> Candidates:
    """The k best (sample, class) pairs of each image; NaN logits rank last.

    A sample may appear with several classes, as in the paper. Only the boxes of these are decoded.

    Args:
        predictions: of N images.
        k: at most; all M x K if there are fewer.
    """
    num_classes = predictions.pred_logits.shape[2]
    logits, index = best_pairs(predictions.pred_logits, k)
    boxes = predictions.boxes.at(index // num_classes)
    return Candidates(logits, index, index % num_classes, boxes)


def select_top_k(
    predictions: DensePredictions, k: int, rescoring: nn.Module | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best (sample, class) pairs of each image, best first.

    Args:
        predictions: of N images.
        k: at most; all M x K if there are fewer.
        rescoring: a :class:`onenet.modeling.rescoring.Rescoring` that refines the best candidates'
            logits before the top-k.

    Returns:
        scores (N, k) in [0, 1], classes (N, k) int64, boxes (N, k, 4) corners in pixels.
    """
    # Rank logits, not scores: the same order, without ties from rounding
    if rescoring is None:
        logits, _, classes, boxes = select_candidates(predictions, k)
    else:
        rescored = rescoring.rescore(predictions, k)
        logits, order = rescored.logits.topk(min(k, rescored.logits.shape[1]), dim=1)
        classes = rescored.classes.gather(1, order)
        boxes = take_samples(rescored.boxes, order)
    return logits.sigmoid(), classes, boxes


def finite_only(instances: Instances) -> Instances:
    """Drops the detections of an image whose score or box is NaN or inf."""
    boxes = instances.pred_boxes.tensor
    return instances[instances.scores.isfinite() & boxes.isfinite().all(dim=1)]


def to_instances(
    scores: Tensor,
    classes: Tensor,
    boxes: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    nms_thresh: float | None = None,
) -> list[Instances]:
    """Converts a batch's detections to Instances.

    Drops detections whose score or box is NaN or inf, which would break the evaluation.

    Args:
        scores: (N, k).
        classes: (N, k).
        boxes: (N, k, 4) corners in pixels.
        image_sizes: (height, width) of each image in the network's input, before padding.
        nms_thresh: IoU threshold of class-wise NMS; None for no NMS. For comparisons only.

    Returns:
        N Instances with ``scores``, ``pred_classes``, ``pred_boxes``, best first.
    """
    # Indexed: autograd forbids in-place changes of the views that iterating over a tensor returns
    results = [
        Instances(size, scores=scores[i], pred_classes=classes[i], pred_boxes=Boxes(boxes[i]))
        for i, size in zip(range(len(scores)), image_sizes, strict=True)
    ]
    # The only GPU synchronisation: with a NaN or inf, the sum is not finite
    sums = (x.detach().sum(dtype=torch.float32) for x in (boxes, scores))
    if not sum(sums).isfinite():
        results = [finite_only(r) for r in results]
    if nms_thresh is None:
        return results
    return [
        r[batched_nms(r.pred_boxes.tensor.float(), r.scores.float(), r.pred_classes, nms_thresh)]
        for r in results
    ]
