"""The loss of a one-to-one matched batch (paper, section 3.2).

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
from torchvision.ops import generalized_box_iou_loss

from .costs import image_scale
from .heads import DensePredictions
from .matcher import Matcher, build_matcher
from .soft_negatives import negative_weights

__all__ = ["Criterion"]


class Criterion(nn.Module):
    """Matches objects to samples and computes the weighted losses, in float32.

    * ``loss_cls``: sigmoid focal loss (arXiv 1708.02002) over all samples and classes;
    * ``loss_l1``: L1 distance of the matched pairs' corners, divided by the image's own size;
    * ``loss_giou``: 1 - GIoU of the matched pairs.

    Each is summed and divided by the number of objects over all workers (at least 1), so that
    several workers give the losses and, averaged by DDP, the gradients of one process on the
    joined batch.

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
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        soft_negatives: bool = False,
    ) -> None:
        """
        Args:
            matcher: gives each object its sample.
            class_weight: weight of ``loss_cls``.
            l1_weight: weight of ``loss_l1``.
            giou_weight: weight of ``loss_giou``.
            focal_alpha: alpha of the focal loss.
            focal_gamma: gamma of the focal loss.
            soft_negatives: whether negatives near a positive weigh less, as
                :func:`onenet.soft_negatives.negative_weights` says.
        """
        super().__init__()
        self.matcher = matcher
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.soft_negatives = soft_negatives

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Reads ``cfg.MODEL.ONENET``."""
        return {
            "matcher": build_matcher(cfg),
            "class_weight": cfg.MODEL.ONENET.LOSS.CLASS_WEIGHT,
            "l1_weight": cfg.MODEL.ONENET.LOSS.L1_WEIGHT,
            "giou_weight": cfg.MODEL.ONENET.LOSS.GIOU_WEIGHT,
            "focal_alpha": cfg.MODEL.ONENET.FOCAL_ALPHA,
            "focal_gamma": cfg.MODEL.ONENET.FOCAL_GAMMA,
            "soft_negatives": cfg.MODEL.ONENET.LOSS.SOFT_NEGATIVES,
        }

    def forward(
        self, predictions: DensePredictions, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: of N images.
            gt_instances: N Instances with ``gt_boxes`` (pixels) and ``gt_classes`` in [0, K).

        Returns:
            ``loss_cls``, ``loss_l1``, ``loss_giou``: weighted float32 scalars. All three depend on
            the predictions even when no image has an object (DDP needs every gradient).
        """
        with torch.autocast(predictions.pred_logits.device.type, enabled=False):
            logits = predictions.pred_logits.float()  # (N, M, K)
            boxes = predictions.pred_boxes.float()  # (N, M, 4)
            predictions = predictions._replace(pred_logits=logits, pred_boxes=boxes)
            matches = self.matcher(predictions, gt_instances)

            batch_idx = torch.cat([s.new_full(s.shape, i) for i, (s, _) in enumerate(matches)])
            sample_idx = torch.cat([s for s, _ in matches])
            pairs = list(zip(gt_instances, matches, strict=True))
            gt_classes = torch.cat([gt.gt_classes[g] for gt, (_, g) in pairs])  # (P,)
            gt_boxes = torch.cat([gt.gt_boxes.tensor[g] for gt, (_, g) in pairs])  # (P, 4)
            scale = torch.cat(
                [image_scale(gt.image_size, boxes.device).expand(len(g), 4) for gt, (_, g) in pairs]
            )

            target = torch.zeros_like(logits)
            target[batch_idx, sample_idx, gt_classes] = 1.0
            loss_cls = sigmoid_focal_loss(
                logits, target, alpha=self.focal_alpha, gamma=self.focal_gamma, reduction="none"
            )
            if self.soft_negatives:
                weights = [
                    negative_weights(
                        predictions.anchors,
                        predictions.level_sizes,
                        samples,
                        gt.gt_boxes.tensor[g],
                        gt.gt_classes[g],
                        logits.shape[2],
                    )
                    for gt, (samples, g) in pairs
                ]
                loss_cls = loss_cls * torch.where(target > 0, 1.0, torch.stack(weights))
            loss_cls = loss_cls.sum()
            matched = boxes[batch_idx, sample_idx]  # (P, 4)
            loss_l1 = F.l1_loss(matched / scale, gt_boxes / scale, reduction="sum")
            loss_giou = generalized_box_iou_loss(matched, gt_boxes, reduction="sum")

            num_objects = _num_objects_per_worker(gt_instances, boxes.device)
            return {
                "loss_cls": self.class_weight * loss_cls / num_objects,
                "loss_l1": self.l1_weight * loss_l1 / num_objects,
                "loss_giou": self.giou_weight * loss_giou / num_objects,
            }


def _num_objects_per_worker(gt_instances: list[Instances], device: torch.device) -> Tensor:
    """Objects of all workers' images (at least 1), divided by the number of workers: a scalar."""
    total = torch.tensor(float(sum(len(gt) for gt in gt_instances)), device=device)
    if comm.get_world_size() > 1:
        dist.all_reduce(total)
    return total.clamp(min=1.0) / comm.get_world_size()
