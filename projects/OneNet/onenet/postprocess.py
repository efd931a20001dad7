"""Inference: the best (class, sample) pairs, and no more."""

from __future__ import annotations

from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms

__all__ = ["select_top_k", "to_instances"]


def select_top_k(pred_logits: Tensor, pred_boxes: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best-scoring (class, sample) pairs of each image, best first.

    One sample may appear with several classes, as in the paper. Logits of NaN rank last.

    Args:
        pred_logits: (N, M, K), before the sigmoid.
        pred_boxes: (N, M, 4) corners in pixels.
        k: how many; with fewer than k pairs, all M x K.

    Returns:
        scores (N, k) in [0, 1], classes (N, k) int64, boxes (N, k, 4).
    """
    num_classes = pred_logits.shape[2]
    flat = pred_logits.flatten(1)
    flat = flat.masked_fill(flat.isnan(), float("-inf"))  # else NaN would rank first
    # The sigmoid is monotonous: ranking the logits gives the same order, and rounds nothing to
    # equal scores.
    logits, indices = flat.topk(min(k, flat.shape[1]), dim=1)
    samples = indices // num_classes
    boxes = pred_boxes.gather(1, samples.unsqueeze(-1).expand(-1, -1, 4))
    return logits.sigmoid(), indices % num_classes, boxes


def to_instances(
    scores: Tensor,
    classes: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    nms_thresh: float | None = None,
) -> Instances:
    """Detections of one image in Detectron2's type.

    Detections whose score or box is NaN or inf are dropped: they would poison the evaluation.

    Args:
        scores: (k,).
        classes: (k,).
        boxes: (k, 4) corners in pixels.
        image_size: (height, width) of the network's input, before padding.
        nms_thresh: IoU above which class-wise NMS removes the lower score; None for no NMS.
            Only there to show what NMS changes.

    Returns:
        Instances with ``scores``, ``pred_classes``, ``pred_boxes``, best first.
    """
    keep = (scores.isfinite() & boxes.isfinite().all(dim=1)).nonzero().squeeze(1)
    if nms_thresh is not None:
        keep = keep[
            batched_nms(boxes[keep].float(), scores[keep].float(), classes[keep], nms_thresh)
        ]
    return Instances(
        image_size, scores=scores[keep], pred_classes=classes[keep], pred_boxes=Boxes(boxes[keep])
    )
