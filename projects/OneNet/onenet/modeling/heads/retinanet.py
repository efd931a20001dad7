"""The RetinaNet head (arXiv 1708.02002)."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor, nn

from .build import ONENET_HEAD_REGISTRY
from .dense_head import TowerHead, init_head

__all__ = ["RetinaNetHead"]


@ONENET_HEAD_REGISTRY.register()
class RetinaNetHead(TowerHead):
    """Separate towers for class and box, shared by all levels; boxes are deltas to the anchors.

    Deltas have weights of 1; dw and dh are clamped at log(1000 / 16), as in Detectron2.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        anchor_generator: nn.Module,
        num_convs: int = 4,
        conv_dim: int = 256,
        norm: str = "",
        conv_bias: bool = False,
        prior_prob: float = 0.01,
        init_std: float = 0.0,
    ) -> None:
        """
        Args:
            input_shape, num_classes, num_convs, conv_dim, norm, conv_bias: see
                :class:`onenet.modeling.heads.dense_head.TowerHead`.
            anchor_generator: has the same number of anchors per location on all levels.
            prior_prob: initial class scores.
            init_std: standard deviation of initial weights; see
                :func:`onenet.modeling.heads.dense_head.init_head`.
        """
        (num_anchors,) = set(anchor_generator.num_anchors)
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            num_anchors=num_anchors,
            num_convs=num_convs,
            conv_dim=conv_dim,
            norm=norm,
            conv_bias=conv_bias,
        )
        self.anchor_generator = anchor_generator
        self.box2box_transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        # As in RetinaNet (arXiv 1708.02002, section 4.1), so that boxes start near the anchors. The
        # authors' code uses Xavier's weights.
        init_head(self, prior_prob, predictor_std=0.01, std=init_std)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Reads ``cfg.MODEL.ONENET`` and ``cfg.MODEL.ANCHOR_GENERATOR``."""
        anchor_generator = build_anchor_generator(cfg, input_shape)
        return {**super().from_config(cfg, input_shape), "anchor_generator": anchor_generator}

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """See :meth:`onenet.modeling.heads.dense_head.DenseHead.decode`."""
        anchors = anchors.expand_as(codes).reshape(-1, 4)
        return self.box2box_transform.apply_deltas(codes.flatten(0, 1), anchors).view_as(codes)
