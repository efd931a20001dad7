"""The OneNet meta-architecture (arXiv 2012.05780)."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ..structures import DensePredictions
from ..utils.errors import ConfigError
from ..utils.registry import check_num_classes
from .criterion import Criterion
from .heads import build_head
from .ops.activation_checkpoint import checkpoint_activations
from .postprocess import select_top_k, to_instances
from .rescoring import Rescoring, build_rescoring

__all__ = ["OneNet"]

logger = logging.getLogger(__name__)


def _input_shapes(shapes: dict[str, ShapeSpec], names: list[str]) -> list[ShapeSpec]:
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ConfigError(
            f"MODEL.ONENET.IN_FEATURES names {unknown}; the backbone has {sorted(shapes)}."
        )
    return [shapes[name] for name in names]


@META_ARCH_REGISTRY.register()
class OneNet(DenseDetector):
    """End-to-end one-stage detector without NMS (arXiv 2012.05780).

    Backbone and head predict class logits and a box at every sample. In training, the criterion
    matches each object to the sample of minimum cost; inference keeps the top-k scores. With a
    head trained one-to-many, an optional rescoring module is trained one-to-one instead.

    A batch pads images of unlike sizes to a common size, as in all of Detectron2. Group norm's
    statistics see the padding, so in inference the scores of a padded image depend on its batch:
    evaluation, :class:`onenet.predictor.Predictor` and ``onenet_runtime`` never mix sizes. Give
    one image at a time, or images of one size, for the same scores as there.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        criterion: Criterion,
        rescoring: Rescoring | None = None,
        head_in_features: list[str] | None = None,
        max_detections_per_image: int = 100,
        nms_thresh: float | None = None,
        pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375),
        input_format: str = "RGB",
        activation_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        """
        Args:
            backbone: returns feature maps by name.
            head: maps the list of feature maps to :class:`onenet.structures.DensePredictions`.
            criterion: maps predictions and Instances to the losses.
            rescoring: refines the scores of the best candidates; None for none.
            head_in_features: names of the head's feature maps, finest first; by default all.
            max_detections_per_image: k of the top-k.
            nms_thresh: IoU threshold of class-wise NMS after the top-k; None for no NMS.
            pixel_mean: subtracted from the channels, in the order of ``input_format``.
            pixel_std: divisor of the channels after that.
            input_format: "RGB" or "BGR", the channel order of the images.
            activation_checkpointing: see
                :func:`onenet.modeling.ops.activation_checkpoint.checkpoint_activations`.
            channels_last: whether weights and activations are in channels-last memory format.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.criterion = criterion
        self.rescoring = rescoring
        self.max_detections_per_image = max_detections_per_image
        self.nms_thresh = nms_thresh
        self.input_format = input_format
        if activation_checkpointing:
            checkpoint_activations(self)
        if channels_last:
            self.to(memory_format=torch.channels_last)  # activations follow the weights

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Reads ``cfg.MODEL``, ``cfg.TEST`` and ``cfg.INPUT``."""
        check_num_classes(cfg)
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        onenet = cfg.MODEL.ONENET
        removes_duplicates = onenet.RESCORING.CANDIDATES > 0 or onenet.NMS_TEST
        if onenet.ONE_TO_MANY.CENTER_RADIUS > 0 and not removes_duplicates:
            logger.warning(
                "MODEL.ONENET.ONE_TO_MANY.CENTER_RADIUS is above 0, so several locations detect an"
                " object, and nothing takes the duplicates away: set"
                " MODEL.ONENET.RESCORING.CANDIDATES, to 200 for example."
            )
        return {
            "backbone": backbone,
            "head": build_head(cfg, _input_shapes(shapes, onenet.IN_FEATURES)),
            "head_in_features": onenet.IN_FEATURES,
            "criterion": Criterion(cfg),
            "rescoring": build_rescoring(cfg),
            # Inference
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "nms_thresh": onenet.NMS_THRESH_TEST if onenet.NMS_TEST else None,
            # Input
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            # Speed and memory
            "activation_checkpointing": onenet.ACTIVATION_CHECKPOINTING,
            "channels_last": onenet.CHANNELS_LAST,
        }

    def num_objects(self, batched_inputs: list[dict]) -> int:
        """The number of objects of a batch, the divisor of the one-to-one losses.

        Args:
            batched_inputs: as for DenseDetector's ``forward``.
        """
        return sum(len(inputs["instances"]) for inputs in batched_inputs)

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: DensePredictions,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Called by DenseDetector with the head's predictions."""
        rescored = None
        if self.rescoring is not None:
            rescored = self.rescoring.rescore(predictions.detach(), self.max_detections_per_image)
        return self.criterion(predictions, gt_instances, rescored)

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: DensePredictions
    ) -> list[Instances]:
        """Called by DenseDetector with the head's predictions."""
        top = select_top_k(predictions, self.max_detections_per_image, self.rescoring)
        return to_instances(*top, images.image_sizes, self.nms_thresh)
