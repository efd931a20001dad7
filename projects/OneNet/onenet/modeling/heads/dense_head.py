"""Base classes and functions of the heads."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn
from torch.nn import functional as F

from ...structures import DenseBoxes, DensePredictions
from ...utils.errors import ConfigError
from ...utils.tracing import in_graph
from ..ops.activation_checkpoint import checkpointed

__all__ = [
    "DenseHead",
    "TowerHead",
    "init_head",
    "ltrb_to_corners",
]


_MAX_SIZES = 32  # image sizes whose anchors are cached


class DenseHead(nn.Module, ABC):
    """Base class of heads, which map feature maps to :class:`DensePredictions`.

    Subclasses have ``num_classes``, the predictors ``cls_score`` and ``bbox_pred`` and one of
    Detectron2's anchor generators as ``anchor_generator``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._anchors: dict[tuple, Tensor] = {}

    def anchors(self, maps: list[Tensor]) -> Tensor:
        """The anchors of all levels, finest first, cached by map sizes.

        Args:
            maps: (N, C, H, W) of each level.

        Returns:
            (M, 4) corners in pixels; do not modify.
        """
        generator = self.anchor_generator

        def make() -> Tensor:
            return torch.cat([level.tensor for level in generator(maps)])

        if in_graph():
            return make()  # a graph must compute them for any size
        key = (generator, *(x.shape[-2:] for x in maps), maps[0].device)
        kept = self._anchors.get(key)
        if kept is None:
            with torch.inference_mode(False):  # usable in training later
                kept = make()
            if type(kept) is Tensor:  # not a fake tensor or tracer's
                if len(self._anchors) >= _MAX_SIZES:
                    self._anchors.clear()
                self._anchors[key] = kept
        return kept

    @abstractmethod
    def towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features for the class and the box predictor, (N, C', H, W) of each level.

        Args:
            features: (N, C, H, W) of each level.
        """

    @abstractmethod
    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Decodes the box predictor's outputs; see :class:`onenet.structures.DenseBoxes`."""

    def scaled(self, codes: list[Tensor]) -> list[Tensor]:
        """The box predictor's outputs, (N, H W A, 4) of each level, with what a level learns."""
        return codes

    def flatten(self, logits: list[Tensor], boxes: list[Tensor]) -> DensePredictions:
        """Concatenates the outputs of all levels.

        Args:
            logits: (N, A K, H, W) of each level, from ``cls_score``.
            boxes: (N, A 4, H, W) of each level, from ``bbox_pred``, not decoded.
        """
        flat_logits = [permute_to_N_HWA_K(level, self.num_classes) for level in logits]
        codes = self.scaled([permute_to_N_HWA_K(level, 4) for level in boxes])
        dense = DenseBoxes(_joined(codes), self.anchors(logits), self.decode)
        level_sizes = tuple(level.shape[1] for level in flat_logits)
        return DensePredictions(_joined(flat_logits), dense, level_sizes)

    def forward(self, features: list[Tensor]) -> DensePredictions:
        """See :data:`onenet.modeling.heads.ONENET_HEAD_REGISTRY`."""
        cls_features, box_features = self.towers(features)
        logits = [self.cls_score(x) for x in cls_features]
        boxes = [self.bbox_pred(x) for x in box_features]
        return self.flatten(logits, boxes)


class TowerHead(DenseHead):
    """Separate convolution towers for class and box, shared by all levels, as in RetinaNet."""

    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        num_convs: int,
        conv_dim: int,
        norm: str,
        conv_bias: bool = False,
    ) -> None:
        """
        Args:
            input_shape: shape of each level's feature map, finest first; equal channels.
            num_classes: K.
            num_anchors: A, samples per location.
            num_convs: number of 3x3 convolutions in each tower.
            conv_dim: channels of the convolutions.
            norm: normalisation, a name of ``detectron2.layers.get_norm``; "" for none.
            conv_bias: whether the convolutions have a bias.
        """
        super().__init__()
        in_channels = input_shape[0].channels
        self.num_classes = num_classes
        self.activation_checkpointing = False  # of the towers
        self.cls_subnet = _conv_tower(in_channels, conv_dim, num_convs, norm, conv_bias)
        self.bbox_subnet = _conv_tower(in_channels, conv_dim, num_convs, norm, conv_bias)
        self.cls_score = nn.Conv2d(conv_dim, num_anchors * num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(conv_dim, num_anchors * 4, kernel_size=3, padding=1)

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
            "conv_bias": head.CONV_BIAS,
            "prior_prob": head.PRIOR_PROB,
            "init_std": head.INIT_STD,
        }

    def towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`DenseHead.towers`."""
        run = checkpointed if self.activation_checkpointing else nn.Module.__call__
        subnets = (self.cls_subnet, self.bbox_subnet)
        cls_features, box_features = ([run(subnet, x) for x in features] for subnet in subnets)
        return cls_features, box_features


def _joined(levels: list[Tensor]) -> Tensor:
    return torch.cat(levels, dim=1) if len(levels) > 1 else levels[0]  # saves a copy


def _conv_tower(
    in_channels: int, channels: int, num_convs: int, norm: str, bias: bool
) -> nn.Sequential:
    convs = [
        Conv2d(
            in_channels if i == 0 else channels,
            channels,
            kernel_size=3,
            padding=1,
            bias=bias,
            norm=get_norm(norm, channels),
            activation=F.relu,
        )
        for i in range(num_convs)
    ]
    return nn.Sequential(*convs)


def init_head(
    head: nn.Module,
    prior_prob: float,
    box_bias: float = 0.0,
    predictor_std: float = 0.0,
    std: float = 0.0,
) -> None:
    """Initialises all convolutions of a head.

    Args:
        head: has the predictors ``cls_score`` and ``bbox_pred``.
        prior_prob: initial class scores, by the bias of ``cls_score`` (arXiv 1708.02002, section
            4.1).
        box_bias: bias of ``bbox_pred``; other biases are 0. Positive where a ReLU follows, since a
            distance below zero gets no gradient through it.
        predictor_std: standard deviation of the two predictors' weights; 0 for ``std``.
        std: standard deviation of normal weights in all convolutions, as in RetinaNet (arXiv
            1708.02002, section 4.1) and FCOS; 0 for Xavier's uniform weights, as in the authors'
            code.

    Raises:
        ConfigError: a standard deviation is below 0.
    """
    if std < 0:
        raise ConfigError(
            f"MODEL.ONENET.HEAD.INIT_STD is {std}; give a standard deviation, or 0 for Xavier's"
            " weights."
        )
    predictors = (head.bbox_pred, head.cls_score)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            module_std = (predictor_std if module in predictors else 0.0) or std
            if module_std:
                nn.init.normal_(module.weight, std=module_std)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.constant_(head.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))
    nn.init.constant_(head.bbox_pred.bias, box_bias)


def ltrb_to_corners(ltrb: Tensor, anchors: Tensor) -> Tensor:
    """Decodes boxes from the distances between their sides and the anchors' centres.

    Args:
        ltrb: (N, M, 4) left, top, right, bottom in pixels.
        anchors: (M, 4) or (N, M, 4) corners in pixels.

    Returns:
        (N, M, 4) corners, float32: half precision is too coarse for pixel coordinates.
    """
    centers = (anchors[..., :2] + anchors[..., 2:]) / 2
    ltrb = ltrb.float()
    top_left, bottom_right = centers - ltrb[..., :2], centers + ltrb[..., 2:]
    return torch.cat((top_left, bottom_right), dim=-1)
