"""The registry of heads, and their common output."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..registry import get_registered

__all__ = ["ONENET_HEAD_REGISTRY", "DensePredictions", "build_head"]

ONENET_HEAD_REGISTRY = Registry("ONENET_HEAD")
ONENET_HEAD_REGISTRY.__doc__ = """
Registry for heads: from feature maps to a class score and a box at every sample.

The registered object is called with `obj(cfg, input_shape)`, where `input_shape` is a list of
ShapeSpec in the order of `cfg.MODEL.ONENET.IN_FEATURES`, and returns a `nn.Module`. That is called
with the list of feature maps, each (N, C, H, W), and returns :class:`DensePredictions`. With
`cfg.MODEL.ONENET.ONE_TO_MANY.BRANCH` these have predictions to train one-to-many too.
"""


class DensePredictions(NamedTuple):
    """What a head says of a batch of ``N`` images, at ``M`` samples, in ``K`` classes.

    Samples of all pyramid levels lie one behind the other, finest level first; within a level by
    row, column and, where a location has several, anchor.
    """

    pred_logits: Tensor
    """(N, M, K) class logits, before the sigmoid."""
    pred_boxes: Tensor
    """(N, M, 4) corners ``x1, y1, x2, y2`` in pixels of the network's input, not clipped."""
    anchors: Tensor
    """(M, 4) corners of the samples' anchors, float32. A point is a square of its level's stride,
    centred at the sample's location."""
    level_sizes: tuple[int, ...]
    """Number of samples of each level; they add up to M."""
    one_to_many: DensePredictions | None = None
    """What is to be trained one-to-many besides, of the same samples, in training only; see
    :meth:`onenet.heads.parts.DenseHead.add_parts`. None where the head has no such branch."""


def build_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Builds the head that ``cfg.MODEL.ONENET.HEAD.NAME`` names.

    Raises:
        ConfigError: no head of that name is registered.
    """
    name = cfg.MODEL.ONENET.HEAD.NAME
    return get_registered(ONENET_HEAD_REGISTRY, name, "MODEL.ONENET.HEAD.NAME")(cfg, input_shape)
