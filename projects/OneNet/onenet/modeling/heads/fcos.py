"""The FCOS head (arXiv 1904.01355) without centre-ness."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor, nn
from torch.nn import functional as F

from ...utils.errors import ConfigError
from .build import ONENET_HEAD_REGISTRY
from .dense_head import TowerHead, init_head, ltrb_to_corners

__all__ = ["FCOSHead"]


@ONENET_HEAD_REGISTRY.register()
class FCOSHead(TowerHead):
    """Separate towers for class and box, shared by all levels.

    Box distances in pixels from the location are ``ReLU(scale * x) * stride``. Each level has a
    learned scale; the stride is the width of the location's anchor.
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
        conv_bias: bool = False,
        offset: float = 0.5,
        prior_prob: float = 0.01,
        init_std: float = 0.0,
    ) -> None:
        """
        Args:
            input_shape, num_classes, num_convs, conv_dim, norm, conv_bias: see
                :class:`onenet.modeling.heads.dense_head.TowerHead`.
            offset: position of a location in its stride cell, in strides; in [0, 1).
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
            conv_bias=conv_bias,
        )
        strides = [shape.stride for shape in input_shape]
        self.scales = nn.Parameter(torch.ones(len(input_shape)))
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[stride] for stride in strides],
            aspect_ratios=[1.0],
            strides=strides,
            offset=offset,
        )
        init_head(self, prior_prob, box_bias=2.0, std=init_std)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Reads ``cfg.MODEL.ONENET``."""
        offset = cfg.MODEL.ONENET.HEAD.OFFSET
        if not 0 <= offset < 1:
            raise ConfigError(
                f"MODEL.ONENET.HEAD.OFFSET is {offset}; give a fraction of the stride from 0 to"
                " below 1, 0.5 for the centre of the stride cell."
            )
        return {**super().from_config(cfg, input_shape), "offset": offset}

    def scaled(self, codes: list[Tensor]) -> list[Tensor]:
        """See :meth:`onenet.modeling.heads.dense_head.DenseHead.scaled`; in strides."""
        return [scale * x.float() for x, scale in zip(codes, self.scales, strict=True)]

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """See :meth:`onenet.modeling.heads.dense_head.DenseHead.decode`."""
        strides = anchors[..., 2:3] - anchors[..., :1]
        return ltrb_to_corners(F.relu(codes) * strides, anchors)
