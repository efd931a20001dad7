"""Matching and losses (paper, section 3.2).

Shape legend: ``N`` images, ``M`` samples, ``K`` classes, ``P`` matched pairs of the batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from ..structures import Candidates, DensePredictions, Matches, Targets
from ..utils.errors import ConfigError
from .center_sampling import match_centers
from .focal_loss import focal_loss_sum
from .matcher import Matcher, build_matcher
from .soft_negatives import negative_weights

__all__ = ["Criterion", "candidates_only", "giou_loss"]

_NO_CANDIDATE = -100.0
"""Logit of samples that are not candidates of rescoring: a score of 0."""


class Criterion(nn.Module):
    """Matches objects to samples and computes the weighted losses, in float32.

    * ``loss_cls``: sigmoid focal loss (arXiv 1708.02002) over all samples and classes;
    * ``loss_l1``: L1 distance of the matched pairs' corners, divided by the image size;
    * ``loss_giou``: 1 - GIoU of the matched pairs;
    * ``loss_cls_rescored``: with :class:`onenet.modeling.rescoring.Rescoring`, the mean binary
      cross-entropy of the rescored candidates, which are always matched one-to-one.

    The first three are summed and divided by the number of objects over all workers (at least 1).
    So several workers give the losses and, averaged by DDP, the gradients of one process on the
    joined batch. With ``center_radius`` objects are matched one-to-many
    (:func:`onenet.modeling.center_sampling.match_centers`), and the divisor is the number of
    matched samples.

    If the matcher gives one sample to several objects, it is a positive of each of their classes,
    and its box is regressed to each of them, whatever their order. (The authors' code keeps the
    class that is written last.)

    All samples of an image without objects are negatives. For NaN and inf see
    :class:`onenet.modeling.matcher.Matcher`; a NaN logit makes the loss NaN.
    """

    @configurable
    def __init__(
        self,
        *,
        matcher: Matcher,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        soft_negatives: bool = False,
        center_radius: float = 0.0,
    ) -> None:
        """
        Args:
            matcher: assigns samples to objects.
            class_weight: weight of ``loss_cls``.
            l1_weight: weight of ``loss_l1``.
            giou_weight: weight of ``loss_giou``.
            focal_alpha: alpha of the focal loss.
            focal_gamma: gamma of the focal loss.
            soft_negatives: whether negatives near a positive have a lower weight; see
                :func:`onenet.modeling.soft_negatives.negative_weights`.
            center_radius: 0 for one-to-one matching; else an object's positives are all samples
                within this many strides of its centre.

        Raises:
            ConfigError: the radius is negative.
        """
        super().__init__()
        if center_radius < 0:
            raise ConfigError(
                f"MODEL.ONENET.ONE_TO_MANY.CENTER_RADIUS is {center_radius}; give a radius in"
                " strides, or 0 for one-to-one training."
            )
        self.matcher = matcher
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.soft_negatives = soft_negatives
        self.center_radius = center_radius

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Reads ``cfg.MODEL.ONENET``."""
        onenet = cfg.MODEL.ONENET
        if onenet.ONE_TO_MANY.CENTER_RADIUS > 0 and onenet.HEAD.NAME == "RetinaNetHead":
            raise ConfigError(
                "MODEL.ONENET.ONE_TO_MANY.CENTER_RADIUS counts in strides, which the anchors of the"
                " RetinaNetHead are not; set it to 0, or take the FCOSHead."
            )
        return {
            "matcher": build_matcher(cfg),
            "class_weight": onenet.LOSS.CLASS_WEIGHT,
            "l1_weight": onenet.LOSS.L1_WEIGHT,
            "giou_weight": onenet.LOSS.GIOU_WEIGHT,
            "focal_alpha": onenet.FOCAL_ALPHA,
            "focal_gamma": onenet.FOCAL_GAMMA,
            "soft_negatives": onenet.LOSS.SOFT_NEGATIVES,
            "center_radius": onenet.ONE_TO_MANY.CENTER_RADIUS,
        }

    def forward(
        self,
        predictions: DensePredictions,
        gt_instances: list[Instances],
        rescored: Candidates | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: of N images.
            gt_instances: N Instances with ``gt_boxes`` (pixels) and ``gt_classes`` in [0, K).
            rescored: candidates with rescored logits, for ``loss_cls_rescored``.

        Returns:
            ``loss_cls``, ``loss_l1``, ``loss_giou`` and, with ``rescored``, ``loss_cls_rescored``:
            weighted float32 scalars. All depend on the predictions even when no image has an
            object, since DDP needs every gradient.
        """
        with torch.autocast(predictions.pred_logits.device.type, enabled=False):
            predictions = predictions.in_float32()
            targets = Targets.from_instances(gt_instances, predictions.pred_logits.device)
            if self.center_radius > 0:
                matches = match_centers(predictions, targets, self.center_radius)
                losses = self._losses(predictions, targets, matches, len(matches.objects))
            else:
                matches = self.matcher.match(predictions, targets)
                losses = self._losses(predictions, targets, matches, len(targets.boxes))
            if rescored is not None:
                losses["loss_cls_rescored"] = self._rescored_loss(predictions, rescored, targets)
            return losses

    def _losses(
        self, predictions: DensePredictions, targets: Targets, matches: Matches, count: int
    ) -> dict[str, Tensor]:
        """Weighted losses of matched predictions, divided by the sum of all workers' ``count``."""
        boxes = predictions.pred_boxes
        matched = boxes.flatten(0, 1)[matches.images * boxes.shape[1] + matches.samples]  # (P, 4)
        gt_boxes, scales = targets.boxes[matches.objects], targets.scales[matches.objects]
        count = _per_worker(count, predictions)
        l1 = ((matched - gt_boxes) / scales).abs().sum()
        giou = giou_loss(matched, gt_boxes).sum()
        return {
            "loss_cls": self._class_loss(predictions, targets, matches, count),
            "loss_l1": l1 * (self.l1_weight / count),
            "loss_giou": giou * (self.giou_weight / count),
        }

    def _class_loss(
        self,
        predictions: DensePredictions,
        targets: Targets,
        matches: Matches,
        count: float | Tensor,
    ) -> Tensor:
        """Weighted classification loss, divided by ``count``."""
        logits = predictions.pred_logits
        weight = self.class_weight / count
        indices = _flat_indices(predictions, targets, matches)
        arguments = (logits, indices, self.focal_alpha, self.focal_gamma)
        if not self.soft_negatives and isinstance(weight, Tensor):  # with several workers
            return focal_loss_sum(*arguments) * weight
        if not self.soft_negatives:
            return focal_loss_sum(*arguments, weight)
        target = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        target.view(-1)[indices] = 1.0
        loss = sigmoid_focal_loss(
            logits, target, alpha=self.focal_alpha, gamma=self.focal_gamma, reduction="none"
        )
        return (loss * self._soft_weights(predictions, targets, matches)).sum() * weight

    def _rescored_loss(
        self, predictions: DensePredictions, rescored: Candidates, targets: Targets
    ) -> Tensor:
        """Weighted mean binary cross-entropy of rescored candidates, matched one-to-one.

        Not focal loss: its minimum is at logits closer to zero, which three weights can only reach
        by lowering the votes.
        """
        predictions = candidates_only(predictions.detach(), rescored)
        matches = self.matcher.match(predictions, targets)
        positives = torch.zeros_like(predictions.pred_logits)
        positives.view(-1)[_flat_indices(predictions, targets, matches)] = 1.0
        loss = F.binary_cross_entropy_with_logits(
            rescored.logits, positives.flatten(1).gather(1, rescored.index)
        )
        return loss * self.class_weight

    def _soft_weights(
        self, predictions: DensePredictions, targets: Targets, matches: Matches
    ) -> Tensor:
        """(N, M, K) weight of every logit's loss; 1 for positives."""
        logits = predictions.pred_logits
        weights = torch.stack(
            [
                negative_weights(
                    predictions.anchors,
                    predictions.level_sizes,
                    samples,
                    gt.gt_boxes.tensor[objects],
                    gt.gt_classes[objects],
                    logits.shape[2],
                )
                for gt, (samples, objects) in zip(
                    targets.instances, matches.by_image(targets.counts), strict=True
                )
            ]
        )
        weights.view(-1)[_flat_indices(predictions, targets, matches)] = 1.0
        return weights


def candidates_only(predictions: DensePredictions, rescored: Candidates) -> DensePredictions:
    """Predictions for the one-to-one matching of rescoring.

    Candidates have their rescored logits, all other samples a score of 0, since they cannot become
    detections.

    Args:
        predictions: of N images.
        rescored: candidates with rescored logits.
    """
    logits = torch.full_like(predictions.pred_logits, _NO_CANDIDATE).flatten(1)
    logits.scatter_(1, rescored.index, rescored.logits.detach())
    return predictions._replace(pred_logits=logits.view_as(predictions.pred_logits))


def _flat_indices(predictions: DensePredictions, targets: Targets, matches: Matches) -> Tensor:
    """(P,) flat indices of the matched (sample, class) pairs into the batch's logits."""
    num_samples, num_classes = predictions.pred_logits.shape[1:]
    samples = matches.images * num_samples + matches.samples
    return samples * num_classes + targets.classes[matches.objects]


def giou_loss(boxes: Tensor, gt_boxes: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - GIoU (arXiv 1902.09630) of each pair.

    As torchvision's ``generalized_box_iou_loss``, but without its GPU synchronisations.

    Args:
        boxes: (P, 4) corners in pixels.
        gt_boxes: (P, 4) likewise.
        eps: added to the denominators.

    Returns:
        (P,), in [0, 2] for boxes with x1 <= x2 and y1 <= y2.
    """
    common = torch.minimum(boxes[:, 2:], gt_boxes[:, 2:]) - torch.maximum(
        boxes[:, :2], gt_boxes[:, :2]
    )
    around = torch.maximum(boxes[:, 2:], gt_boxes[:, 2:]) - torch.minimum(
        boxes[:, :2], gt_boxes[:, :2]
    )
    sizes = torch.stack(
        (
            common.clamp(min=0),
            around,
            boxes[:, 2:] - boxes[:, :2],
            gt_boxes[:, 2:] - gt_boxes[:, :2],
        )
    )
    intersection, enclosing, area, gt_area = (sizes[..., 0] * sizes[..., 1]).unbind()
    union = area + gt_area - intersection
    return 1 - intersection / (union + eps) + (enclosing - union) / (enclosing + eps)


def _per_worker(count: int, predictions: DensePredictions) -> float | Tensor:
    """Sum of all workers' counts (at least 1), divided by the number of workers."""
    if comm.get_world_size() == 1:
        return max(float(count), 1.0)
    total = torch.tensor(float(count), device=predictions.pred_logits.device)
    dist.all_reduce(total)
    return total.clamp(min=1.0) / comm.get_world_size()
