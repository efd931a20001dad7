"""The RetinaNet head (arXiv 1708.02002)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn

from ...structures import DenseBoxes, DensePredictions
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
        prior_prob: float = 0.01,
        init_std: float = 0.0,
    ) -> None:
        """
        Args:
            input_shape, num_classes, num_convs, conv_dim, norm: see
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
        )
        self.anchor_generator = anchor_generator
        self.box2box_transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        # As in RetinaNet (arXiv 1708.02002, section 4.1), so that boxes start near the anchors. The
        # authors' code uses Xavier's weights.
        init_head(self, prior_prob, predictor_std=0.01, std=init_std)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Reads ``cfg.MODEL.ONENET`` and ``cfg.MODEL.ANCHOR_GENERATOR``."""
        head = cfg.MODEL.ONENET.HEAD
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.ONENET.NUM_CLASSES,
            "anchor_generator": build_anchor_generator(cfg, input_shape),
            "num_convs": head.NUM_CONVS,
            "conv_dim": head.CONV_DIM,
            "norm": head.NORM,
            "prior_prob": head.PRIOR_PROB,
            "init_std": head.INIT_STD,
        }

    def flatten(self, logits: list[Tensor], boxes: list[Tensor]) -> DensePredictions:
        """See :meth:`onenet.modeling.heads.dense_head.DenseHead.flatten`."""
        flat_logits = [permute_to_N_HWA_K(level, self.num_classes) for level in logits]
        deltas = [permute_to_N_HWA_K(level, 4) for level in boxes]
        dense = DenseBoxes(torch.cat(deltas, dim=1), self.anchors(logits), self._decode)
        level_sizes = tuple(level.shape[1] for level in flat_logits)
        return DensePredictions(torch.cat(flat_logits, dim=1), dense, level_sizes)

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        anchors = anchors.expand_as(deltas).reshape(-1, 4)
        return self.box2box_transform.apply_deltas(deltas.flatten(0, 1), anchors).view_as(deltas)
