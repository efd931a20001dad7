"""The FCOS head (arXiv 1904.01355) without centre-ness."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn
from torch.nn import functional as F

from ...structures import DenseBoxes, DensePredictions
from .build import ONENET_HEAD_REGISTRY
from .dense_head import TowerHead, init_head, ltrb_to_corners

__all__ = ["FCOSHead"]


@ONENET_HEAD_REGISTRY.register()
class FCOSHead(TowerHead):
    """Separate towers for class and box, shared by all levels.

    Box distances in pixels from the centre of the stride cell are ``ReLU(scale * x) * stride``.
    Each level has a learned scale; the stride is the width of the location's anchor.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_convs: int = 4,
        conv_dim: int = 256,
        norm: str = "GN",
        prior_prob: float = 0.01,
        init_std: float = 0.0,
    ) -> None:
        """
        Args:
            input_shape, num_classes, num_convs, conv_dim, norm: see
                :class:`onenet.modeling.heads.dense_head.TowerHead`.
            prior_prob: initial class scores.
            init_std: standard deviation of initial weights; see
                :func:`onenet.modeling.heads.dense_head.init_head`.
        """
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            num_anchors=1,
            num_convs=num_convs,
            conv_dim=conv_dim,
            norm=norm,
        )
        strides = [shape.stride for shape in input_shape]
        self.scales = nn.Parameter(torch.ones(len(input_shape)))
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[stride] for stride in strides],
            aspect_ratios=[1.0],
            strides=strides,
            offset=0.5,
        )
        init_head(self, prior_prob, box_bias=2.0, std=init_std)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Reads ``cfg.MODEL.ONENET``."""
        head = cfg.MODEL.ONENET.HEAD
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.ONENET.NUM_CLASSES,
            "num_convs": head.NUM_CONVS,
            "conv_dim": head.CONV_DIM,
            "norm": head.NORM,
            "prior_prob": head.PRIOR_PROB,
            "init_std": head.INIT_STD,
        }

    def flatten(self, logits: list[Tensor], boxes: list[Tensor]) -> DensePredictions:
        """See :meth:`onenet.modeling.heads.dense_head.DenseHead.flatten`."""
        flat_logits = [permute_to_N_HWA_K(level, self.num_classes) for level in logits]
        distances = [  # in strides
            scale * permute_to_N_HWA_K(level, 4).float()
            for level, scale in zip(boxes, self.scales, strict=True)
        ]
        dense = DenseBoxes(torch.cat(distances, dim=1), self.anchors(logits), self._decode)
        level_sizes = tuple(level.shape[1] for level in flat_logits)
        return DensePredictions(torch.cat(flat_logits, dim=1), dense, level_sizes)

    @staticmethod
    def _decode(distances: Tensor, anchors: Tensor) -> Tensor:
        strides = anchors[..., 2:3] - anchors[..., :1]
        return ltrb_to_corners(F.relu(distances) * strides, anchors)
