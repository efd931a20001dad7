"""The registry of heads."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from ...utils.registry import get_registered

__all__ = ["ONENET_HEAD_REGISTRY", "build_head"]

ONENET_HEAD_REGISTRY = Registry("ONENET_HEAD")
ONENET_HEAD_REGISTRY.__doc__ = """
Registry for heads, which predict class logits and a box at every sample.

The registered object is called with `obj(cfg, input_shape)`, where `input_shape` is a list of
ShapeSpec in the order of `cfg.MODEL.ONENET.IN_FEATURES`, and returns an `nn.Module`. The module is
called with the list of feature maps, each (N, C, H, W), and returns :class:`DensePredictions`.
"""


def build_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Builds the head ``cfg.MODEL.ONENET.HEAD.NAME``.

    Raises:
        ConfigError: no head of that name is registered.
    """
    name = cfg.MODEL.ONENET.HEAD.NAME
    return get_registered(ONENET_HEAD_REGISTRY, name, "MODEL.ONENET.HEAD.NAME")(cfg, input_shape)
