"""The losses of a matched batch (paper, section 3.2).

Shape legend: ``N`` images, ``M`` samples, ``K`` classes, ``P`` matched pairs of the batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ConfigError
from .focal_loss import focal_loss_sum
from .heads import DensePredictions
from .matcher import Matcher, Matches, build_matcher
from .soft_negatives import negative_weights
from .targets import Targets

__all__ = ["Criterion", "giou_loss", "quality_focal_loss"]


CLASS_LOSSES = ("focal", "quality")


class Criterion(nn.Module):
    """Matches objects to samples and computes the weighted losses, in float32.

    * ``loss_cls``: sigmoid focal loss (arXiv 1708.02002) over all samples and classes, or
      :func:`quality_focal_loss`;
    * ``loss_l1``: L1 distance of the matched pairs' corners, divided by the image's own size;
    * ``loss_giou``: 1 - GIoU of the matched pairs.

    Each is summed and divided by the number of objects over all workers (at least 1), so that
    several workers give the losses and, averaged by DDP, the gradients of one process on the
    joined batch.

    Where the head gives predictions to train one-to-many too, these are matched so by the same
    cost, and give the same three losses, ``loss_cls_many`` and so on, divided by the number of
    matched samples instead: all have a weight in the sum like that of the one-to-one losses.

    Collisions, where the matcher gives one sample to several objects: the sample is a positive of
    each of their classes, and its box is regressed to each of them. That depends on no order of
    the objects. (The authors' code keeps the class that happens to be written last.)

    An image without objects has negatives only. Predictions of NaN or inf are matched as
    :class:`onenet.matcher.Matcher` says; a logit of NaN makes the loss NaN, at which Detectron2's
    trainer stops.
    """

    @configurable
    def __init__(
        self,
        *,
        matcher: Matcher,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        class_loss: str = "focal",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        soft_negatives: bool = False,
        num_samples_many: int = 8,
        weight_many: float = 1.0,
    ) -> None:
        """
        Args:
            matcher: gives each object its sample.
            class_weight: weight of ``loss_cls``.
            l1_weight: weight of ``loss_l1``.
            giou_weight: weight of ``loss_giou``.
            class_loss: "focal" or "quality".
            focal_alpha: alpha of the focal loss.
            focal_gamma: gamma of the focal loss.
            soft_negatives: whether negatives near a positive weigh less, as
                :func:`onenet.soft_negatives.negative_weights` says.
            num_samples_many: how many samples an object may have in one-to-many matching.
            weight_many: what the one-to-many losses are multiplied by.

        Raises:
            ConfigError: there is no such class loss, or a number makes no sense.
        """
        super().__init__()
        if class_loss not in CLASS_LOSSES:
            raise ConfigError(
                f"MODEL.ONENET.LOSS.CLASS_LOSS is '{class_loss}'; choose one of:"
                f" {', '.join(CLASS_LOSSES)}."
            )
        if num_samples_many < 1:
            raise ConfigError(
                f"MODEL.ONENET.ONE_TO_MANY.NUM_SAMPLES is {num_samples_many}; give 1 or more."
            )
        self.matcher = matcher
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.class_loss = class_loss
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.soft_negatives = soft_negatives
        self.num_samples_many = num_samples_many
        self.weight_many = weight_many

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Reads ``cfg.MODEL.ONENET``."""
        onenet = cfg.MODEL.ONENET
        return {
            "matcher": build_matcher(cfg),
            "class_weight": onenet.LOSS.CLASS_WEIGHT,
            "l1_weight": onenet.LOSS.L1_WEIGHT,
            "giou_weight": onenet.LOSS.GIOU_WEIGHT,
            "class_loss": onenet.LOSS.CLASS_LOSS,
            "focal_alpha": onenet.FOCAL_ALPHA,
            "focal_gamma": onenet.FOCAL_GAMMA,
            "soft_negatives": onenet.LOSS.SOFT_NEGATIVES,
            "num_samples_many": onenet.ONE_TO_MANY.NUM_SAMPLES,
            "weight_many": onenet.ONE_TO_MANY.LOSS_WEIGHT,
        }

    def forward(
        self, predictions: DensePredictions, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: of N images.
            gt_instances: N Instances with ``gt_boxes`` (pixels) and ``gt_classes`` in [0, K).

        Returns:
            ``loss_cls``, ``loss_l1``, ``loss_giou``, and for one-to-many predictions the
            same with ``_many`` behind: weighted float32 scalars. All depend on the
            predictions even when no image has an object (DDP needs every gradient).
        """
        with torch.autocast(predictions.pred_logits.device.type, enabled=False):
            many = predictions.one_to_many
            predictions = predictions.in_float32()
            targets = Targets.of(gt_instances, predictions.pred_logits.device)
            matches = self.matcher.match(predictions, targets)
            losses = self._losses(predictions, targets, matches, len(targets.boxes))
            if many is not None:
                many = many.in_float32()
                matches = self.matcher.match_many(many, targets, self.num_samples_many)
                of_many = self._losses(
                    many, targets, matches, len(matches.objects), self.weight_many
                )
                losses.update({f"{name}_many": loss for name, loss in of_many.items()})
            return losses

    def _losses(
        self,
        predictions: DensePredictions,
        targets: Targets,
        matches: Matches,
        count: int,
        weight: float = 1.0,
    ) -> dict[str, Tensor]:
        """The weighted losses of matched predictions, divided by all workers' ``count``."""
        logits, boxes = predictions.pred_logits, predictions.pred_boxes
        places = matches.images * logits.shape[1] + matches.samples  # among the batch's samples
        matched = boxes.flatten(0, 1)[places]  # (P, 4)
        gt_boxes, scales = targets.boxes[matches.objects], targets.scales[matches.objects]
        places = places * logits.shape[2] + targets.classes[matches.objects]  # among its logits
        weight = weight / _per_worker(count, predictions)
        if self.class_loss == "focal" and not self.soft_negatives:
            arguments = (logits, places, self.focal_alpha, self.focal_gamma)
            if isinstance(weight, Tensor):  # of several workers
                loss_cls = focal_loss_sum(*arguments) * (self.class_weight * weight)
            else:
                loss_cls = focal_loss_sum(*arguments, self.class_weight * weight)
        else:
            losses = self._class_losses(predictions, targets, matches, places)
            loss_cls = losses.sum() * (self.class_weight * weight)
        return {
            "loss_cls": loss_cls,
            "loss_l1": ((matched - gt_boxes) / scales).abs().sum() * (self.l1_weight * weight),
            "loss_giou": giou_loss(matched, gt_boxes).sum() * (self.giou_weight * weight),
        }

    def _class_losses(
        self,
        predictions: DensePredictions,
        targets: Targets,
        matches: Matches,
        places: Tensor,
    ) -> Tensor:
        """The class loss of every logit, (N, M, K)."""
        logits = predictions.pred_logits
        target = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        if self.class_loss == "focal":
            target.view(-1)[places] = 1.0
            loss = sigmoid_focal_loss(
                logits, target, alpha=self.focal_alpha, gamma=self.focal_gamma, reduction="none"
            )
        else:
            matched = predictions.pred_boxes[matches.images, matches.samples]
            ious = _ious(matched, targets.boxes[matches.objects])
            # amax, not assignment, whose order is undefined on a GPU where samples collide
            target.view(-1).scatter_reduce_(0, places, ious, reduce="amax")
            loss = quality_focal_loss(logits, target)
        if not self.soft_negatives:
            return loss
        weights = [
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
        return loss * torch.where(target > 0, 1.0, torch.stack(weights))


def quality_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The classification loss whose positives have an IoU as their target.

    With p the sigmoid score, q the target (0 for negatives) and BCE(p, q) the binary cross entropy:
    ``|q - p|^2 BCE(p, q)`` (Generalized Focal Loss, arXiv 2006.04388).

    Args:
        logits: (..., K), before the sigmoid.
        target: the same shape, in [0, 1].

    Returns:
        The same shape.
    """
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return loss * (target - logits.sigmoid()) ** 2


def giou_loss(boxes: Tensor, gt_boxes: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - GIoU (arXiv 1902.09630) of each pair, as torchvision's ``generalized_box_iou_loss``,
    which makes the host wait for a GPU ten times.

    Args:
        boxes: (P, 4) corners in pixels.
        gt_boxes: (P, 4) likewise.
        eps: is added to what divides.

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


@torch.no_grad()
def _ious(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """IoU of each pair, (P,); 0 where both have no area."""
    ious = matched_pairwise_iou(Boxes(boxes), Boxes(gt_boxes))
    return ious.nan_to_num(nan=0.0).clamp(0.0, 1.0)


def _per_worker(count: int, predictions: DensePredictions) -> float | Tensor:
    """The sum of all workers' counts (at least 1), divided by the number of workers."""
    if comm.get_world_size() == 1:
        return max(float(count), 1.0)
    total = torch.tensor(float(count), device=predictions.pred_logits.device)
    dist.all_reduce(total)
    return total.clamp(min=1.0) / comm.get_world_size()
