"""The registry of heads, and their common output."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..postprocess import take_samples
from ..utils.registry import get_registered

__all__ = ["ONENET_HEAD_REGISTRY", "DenseBoxes", "DensePredictions", "build_head"]

ONENET_HEAD_REGISTRY = Registry("ONENET_HEAD")
ONENET_HEAD_REGISTRY.__doc__ = """
Registry for heads: from feature maps to a class score and a box at every sample.

The registered object is called with `obj(cfg, input_shape)`, where `input_shape` is a list of
ShapeSpec in the order of `cfg.MODEL.ONENET.IN_FEATURES`, and returns a `nn.Module`. That is called
with the list of feature maps, each (N, C, H, W), and returns :class:`DensePredictions`.
"""


class DenseBoxes:
    """A box at every sample, of which no more are decoded than are asked for."""

    def __init__(
        self,
        codes: Tensor,
        anchors: Tensor,
        decode: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            codes: (N, M, C) what the box predictor says of each sample.
            anchors: (M, 4) corners of the samples' anchors, float32.
            decode: from codes (N, k, C), and the anchors of the same samples, (k, 4) or (N, k, 4),
                to corners (N, k, 4), each sample on its own; None where codes are corners already.
        """
        self.codes, self.anchors, self.decode = codes, anchors, decode

    @cached_property
    def corners(self) -> Tensor:
        """(N, M, 4) of all samples; see :attr:`DensePredictions.pred_boxes`."""
        if self.decode is None:
            return self.codes
        # They are kept: a matcher, which has no need for gradients, may be the first to ask
        with torch.set_grad_enabled(self.codes.requires_grad):
            return self.decode(self.codes, self.anchors)

    def at(self, samples: Tensor) -> Tensor:
        """The corners of some samples, (N, k, 4).

        Args:
            samples: (N, k) int64 indices, of each image's.
        """
        codes = take_samples(self.codes, samples)
        return codes if self.decode is None else self.decode(codes, self.anchors[samples])


class DensePredictions(NamedTuple):
    """What a head says of a batch of ``N`` images, at ``M`` samples, in ``K`` classes.

    Samples of all pyramid levels lie one behind the other, finest level first; within a level by
    row, column and, where a location has several, anchor.
    """

    pred_logits: Tensor
    """(N, M, K) class logits, before the sigmoid."""
    boxes: DenseBoxes
    """The box of every sample."""
    level_sizes: tuple[int, ...]
    """Number of samples of each level; they add up to M."""

    @classmethod
    def of(
        cls,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        anchors: Tensor,
        level_sizes: tuple[int, ...],
    ) -> DensePredictions:
        """Predictions whose boxes are decoded; arguments are as the attributes of their names."""
        return cls(pred_logits, DenseBoxes(pred_boxes, anchors), level_sizes)

    @property
    def pred_boxes(self) -> Tensor:
        """(N, M, 4) corners ``x1, y1, x2, y2`` in pixels of the network's input, not clipped."""
        return self.boxes.corners

    @property
    def anchors(self) -> Tensor:
        """(M, 4) corners of the samples' anchors, float32. A point is a square of its level's
        stride, centred at the sample's location."""
        return self.boxes.anchors

    def detach(self) -> DensePredictions:
        """The same without gradient."""
        boxes = self.boxes
        detached = DenseBoxes(boxes.codes.detach(), boxes.anchors, boxes.decode)
        return self._replace(pred_logits=self.pred_logits.detach(), boxes=detached)

    def in_float32(self) -> DensePredictions:
        """The same in float32, with all boxes decoded."""
        boxes = DenseBoxes(self.pred_boxes.float(), self.anchors)
        return self._replace(pred_logits=self.pred_logits.float(), boxes=boxes)


def build_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Builds the head that ``cfg.MODEL.ONENET.HEAD.NAME`` names.

    Raises:
        ConfigError: no head of that name is registered.
    """
    name = cfg.MODEL.ONENET.HEAD.NAME
    return get_registered(ONENET_HEAD_REGISTRY, name, "MODEL.ONENET.HEAD.NAME")(cfg, input_shape)
