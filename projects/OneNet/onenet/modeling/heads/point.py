"""The point head on one feature map of stride 4, as in CenterNet (arXiv 1904.07850)."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor, nn
from torch.nn import functional as F

from ...utils.errors import ConfigError
from .build import ONENET_HEAD_REGISTRY
from .dense_head import DenseHead, init_head, ltrb_to_corners

__all__ = ["PointHead"]


@ONENET_HEAD_REGISTRY.register()
class PointHead(DenseHead):
    """A shared 3x3 convolution with ReLU, then one 3x3 convolution each for class and box.

    Boxes are distances in pixels from the centre of the stride cell.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        conv_dim: int = 64,
        prior_prob: float = 0.01,
        init_std: float = 0.0,
    ) -> None:
        """
        Args:
            input_shape: shape of the one feature map.
            num_classes: K.
            conv_dim: channels of the shared convolution.
            prior_prob: initial class scores.
            init_std: standard deviation of initial weights; see
                :func:`onenet.modeling.heads.dense_head.init_head`.
        """
        super().__init__()
        if len(input_shape) != 1:
            raise ConfigError(
                f"The point head takes one feature map, but MODEL.ONENET.IN_FEATURES names"
                f" {len(input_shape)}."
            )
        (shape,) = input_shape
        self.num_classes = num_classes
        self.conv = Conv2d(shape.channels, conv_dim, kernel_size=3, padding=1, activation=F.relu)
        self.cls_score = nn.Conv2d(conv_dim, num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(conv_dim, 4, kernel_size=3, padding=1)
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[shape.stride]], aspect_ratios=[1.0], strides=[shape.stride], offset=0.5
        )
        init_head(self, prior_prob, box_bias=4.0 * shape.stride, std=init_std)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Reads ``cfg.MODEL.ONENET``."""
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.ONENET.NUM_CLASSES,
            "conv_dim": cfg.MODEL.ONENET.HEAD.CONV_DIM,
            "prior_prob": cfg.MODEL.ONENET.HEAD.PRIOR_PROB,
            "init_std": cfg.MODEL.ONENET.HEAD.INIT_STD,
        }

    def towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`onenet.modeling.heads.dense_head.DenseHead.towers`; takes one feature map."""
        (feature,) = features
        shared = [self.conv(feature)]
        return shared, shared

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """See :meth:`onenet.modeling.heads.dense_head.DenseHead.decode`."""
        return ltrb_to_corners(F.relu(codes), anchors)
