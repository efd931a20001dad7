"""What the heads share: towers, predictors, initialisation, boxes from distances."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..tracing import in_graph
from .build import DensePredictions
from .max_filter import MaxFilter
from .rescoring import PairwiseRescoring

__all__ = [
    "DenseHead",
    "PredictorPair",
    "TowerHead",
    "check_parts",
    "init_head",
    "ltrb_to_corners",
    "parts_from_config",
]


_MAX_SIZES = 32  # of images whose anchors are kept


class PredictorPair(nn.Module):
    """The second pair of predictors: as the first, on the same towers, but trained one-to-many.

    It exists for the gradients that it sends into towers and backbone: with many positives an
    object these learn sooner (DeFCN, arXiv 2012.03544). Nothing of it is used in inference.
    """

    def __init__(self, head: nn.Module, names: Sequence[str]) -> None:
        """
        Args:
            head: has the first pair, initialised.
            names: of the modules and parameters that make it up; they are copied.
        """
        super().__init__()
        for name in names:
            setattr(self, name, copy.deepcopy(getattr(head, name)))


class DenseHead(nn.Module, ABC):
    """From feature maps to :class:`DensePredictions`, with the parts that any head may have.

    A subclass has the predictors ``cls_score`` and ``bbox_pred`` and Detectron2's
    ``anchor_generator``, and calls :meth:`add_parts` at the end of its ``__init__``.
    """

    has_two_towers = True
    """Whether class and box features are different ones."""

    def add_parts(
        self,
        *,
        predictors: Sequence[str] = ("cls_score", "bbox_pred"),
        one_to_many: str = "",
        stop_gradient: bool = False,
        max_filter_channels: int = 0,
        rescored_candidates: int = 0,
    ) -> None:
        """
        Args:
            predictors: names of all that :meth:`predict` reads from its first argument.
            one_to_many: what is trained one-to-many besides: "" for nothing; "pair" for a
                :class:`PredictorPair` beside the predictors; "base" for the predictors themselves,
                before the max filter, so that this alone has to learn which sample is the one.
            stop_gradient: whether the one-to-one losses' gradients end where the branch begins: at
                the predictors' own weights ("pair"), or, those through the logits, at the max
                filter's ("base", whose boxes are the same one-to-one and one-to-many).
            max_filter_channels: of a :class:`onenet.heads.max_filter.MaxFilter` behind the class
                logits; 0 for none.
            rescored_candidates: of a :class:`onenet.heads.rescoring.PairwiseRescoring` behind all
                this; 0 for none.

        Raises:
            ConfigError: see :func:`check_parts`.
        """
        check_parts(one_to_many, stop_gradient, max_filter_channels, rescored_candidates)
        self._anchors: dict[tuple, Tensor] = {}
        self.one_to_many = PredictorPair(self, predictors) if one_to_many == "pair" else None
        self.base_is_one_to_many = one_to_many == "base"
        self.stop_gradient = stop_gradient
        channels = self.cls_score.in_channels
        if self.has_two_towers:
            channels += self.bbox_pred.in_channels
        num_anchors = self.cls_score.out_channels // self.num_classes
        self.max_filter = self.rescoring = None
        if max_filter_channels:
            self.max_filter = MaxFilter(channels, max_filter_channels, num_anchors)
        if rescored_candidates:
            self.rescoring = PairwiseRescoring(channels, rescored_candidates, num_anchors)

    def anchors(self, maps: list[Tensor]) -> Tensor:
        """The anchors of all levels, those of the finest first.

        They are kept for the next maps of the same sizes, since to make them takes several
        operators a level.

        Args:
            maps: (N, C, H, W) of each level.

        Returns:
            (M, 4) corners in pixels; not to be changed.
        """
        generator = self.anchor_generator

        def make() -> Tensor:
            return torch.cat([level.tensor for level in generator(maps)])

        if in_graph():
            return make()  # a graph has to make them, for any size
        key = (generator, *(x.shape[-2:] for x in maps), maps[0].device)
        kept = self._anchors.get(key)
        if kept is None:
            with torch.inference_mode(False):  # training may be next
                kept = make()
            if type(kept) is Tensor:  # not one of an estimate's or a tracer's
                if len(self._anchors) >= _MAX_SIZES:
                    self._anchors.clear()
                self._anchors[key] = kept
        return kept

    @abstractmethod
    def towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the class and the box predictor take of each level: (N, C', H, W) twice.

        Args:
            features: (N, C, H, W) of each level.
        """

    @abstractmethod
    def predict(
        self, predictors: nn.Module, logits: list[Tensor], box_features: list[Tensor]
    ) -> DensePredictions:
        """
        Args:
            predictors: the head itself, or its :class:`PredictorPair`.
            logits: (N, A K, H, W) of each level.
            box_features: (N, C', H, W) of each level, which the box predictor takes.

        Returns:
            Logits and boxes of all samples, the latter not decoded yet.
        """

    def forward(self, features: list[Tensor]) -> DensePredictions:
        """See :data:`onenet.heads.ONENET_HEAD_REGISTRY`."""
        cls_features, box_features = self.towers(features)
        many = None
        if self.training and self.one_to_many is not None:
            logits = [self.one_to_many.cls_score(x) for x in cls_features]
            many = self.predict(self.one_to_many, logits, box_features)
            if self.stop_gradient:
                cls_features = [x.detach() for x in cls_features]
                box_features = [x.detach() for x in box_features]
        logits = [self.cls_score(x) for x in cls_features]
        if not (self.training and self.base_is_one_to_many):
            context = self.context(cls_features, box_features)
            filtered = self.filter_logits(logits, context)
            predictions = self.predict(self, filtered, box_features)._replace(one_to_many=many)
        else:
            many = self.predict(self, logits, box_features)
            if self.stop_gradient:
                logits = [x.detach() for x in logits]
                cls_features = [x.detach() for x in cls_features]
                box_features = [x.detach() for x in box_features]
            context = self.context(cls_features, box_features)
            filtered = self.filter_logits(logits, context)
            flat = [permute_to_N_HWA_K(level, self.num_classes) for level in filtered]
            predictions = many._replace(pred_logits=torch.cat(flat, dim=1), one_to_many=many)
        return self.rescore(predictions, self.embeddings(context))

    def context(self, cls_features: list[Tensor], box_features: list[Tensor]) -> list[Tensor]:
        """What max filter and rescoring see: (N, C'', H, W) of each level, all that towers know.

        Args:
            cls_features, box_features: what :meth:`towers` gave.

        Returns:
            [] where the head has neither.
        """
        if self.max_filter is None and self.rescoring is None:
            return []
        if not self.has_two_towers:
            return cls_features
        pairs = zip(cls_features, box_features, strict=True)
        return [torch.cat(pair, dim=1) for pair in pairs]

    def filter_logits(self, logits: list[Tensor], context: list[Tensor]) -> list[Tensor]:
        """The logits behind the max filter, in their shapes; without a filter as they are.

        Args:
            logits: (N, A K, H, W) of each level.
            context: what :meth:`context` gave.
        """
        return logits if self.max_filter is None else self.max_filter(logits, context)

    def embeddings(self, context: list[Tensor]) -> list[Tensor]:
        """What :meth:`rescore` takes: (N, D, H, W) of each level; [] where nothing is rescored.

        Args:
            context: what :meth:`context` gave.
        """
        return [] if self.rescoring is None else self.rescoring.embeddings(context)

    def rescore(self, predictions: DensePredictions, embeddings: list[Tensor]) -> DensePredictions:
        """The predictions with the best logits changed; without rescoring as they are.

        Args:
            predictions: behind the max filter.
            embeddings: what :meth:`embeddings` gave.
        """
        return predictions if self.rescoring is None else self.rescoring(predictions, embeddings)


class TowerHead(DenseHead):
    """Separate towers of convolutions for class and box, shared by all levels (RetinaNet's)."""

    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        num_convs: int,
        conv_dim: int,
        norm: str,
    ) -> None:
        """
        Args:
            input_shape: of each level's feature map, finest first; equal channels.
            num_classes: K.
            num_anchors: A, samples a location.
            num_convs: 3x3 convolutions without bias in each tower.
            conv_dim: their channels.
            norm: their normalisation, any name of ``detectron2.layers.get_norm``; "" for none.
        """
        super().__init__()
        in_channels = input_shape[0].channels
        self.num_classes = num_classes
        self.cls_subnet = _conv_tower(in_channels, conv_dim, num_convs, norm)
        self.bbox_subnet = _conv_tower(in_channels, conv_dim, num_convs, norm)
        self.cls_score = nn.Conv2d(conv_dim, num_anchors * num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(conv_dim, num_anchors * 4, kernel_size=3, padding=1)

    def towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`DenseHead.towers`."""
        return [self.cls_subnet(x) for x in features], [self.bbox_subnet(x) for x in features]


def check_parts(
    one_to_many: str, stop_gradient: bool, max_filter_channels: int, rescored_candidates: int
) -> None:
    """Checks the arguments of :meth:`DenseHead.add_parts`.

    Raises:
        ConfigError: there is no such branch, "base" has no max filter behind it, or the filter's
            channels or the number of candidates are below 0.
    """
    if one_to_many not in ("", "pair", "base"):
        raise ConfigError(
            f"MODEL.ONENET.ONE_TO_MANY.BRANCH is '{one_to_many}'; choose '' (none), 'pair' or"
            " 'base'."
        )
    if max_filter_channels < 0:
        raise ConfigError(
            f"MODEL.ONENET.HEAD.MAX_FILTER_DIM is {max_filter_channels}; give a number of channels,"
            " or 0 for no filter."
        )
    if rescored_candidates < 0:
        raise ConfigError(
            f"MODEL.ONENET.HEAD.RESCORED_CANDIDATES is {rescored_candidates}; give a number of"
            " candidates an image, or 0 for no rescoring."
        )
    if one_to_many == "base" and not max_filter_channels:
        raise ConfigError(
            "MODEL.ONENET.ONE_TO_MANY.BRANCH 'base' needs a max filter behind the predictors: set"
            " MODEL.ONENET.HEAD.MAX_FILTER_DIM, to 32 for example."
        )


def parts_from_config(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of :meth:`DenseHead.add_parts` that ``cfg.MODEL.ONENET`` gives."""
    many = cfg.MODEL.ONENET.ONE_TO_MANY
    return {
        "one_to_many": many.BRANCH,
        "stop_gradient": many.STOP_GRADIENT,
        "max_filter_channels": cfg.MODEL.ONENET.HEAD.MAX_FILTER_DIM,
        "rescored_candidates": cfg.MODEL.ONENET.HEAD.RESCORED_CANDIDATES,
    }


def _conv_tower(in_channels: int, channels: int, num_convs: int, norm: str) -> nn.Sequential:
    convs = [
        Conv2d(
            in_channels if i == 0 else channels,
            channels,
            kernel_size=3,
            padding=1,
            bias=False,
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
    """Initialises every convolution of a head, and the biases of ``cls_score``, ``bbox_pred``.

    Other biases are 0.

    Args:
        head: has the two predictors ``cls_score`` and ``bbox_pred``.
        prior_prob: around which every class score starts (arXiv 1708.02002, section 4.1).
        box_bias: what box predictions start around. Where a ReLU follows it has to be positive:
            a side whose distance starts below zero gets no gradient through it.
        predictor_std: of normal weights in the two predictors; 0 for ``std``.
        std: of normal weights in all convolutions, as in RetinaNet (arXiv 1708.02002, section 4.1)
            and FCOS; 0 for Xavier's uniform ones, as in the authors' code.

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
    """Boxes from the distances of their sides to the anchors' centres.

    Args:
        ltrb: (N, M, 4) left, top, right, bottom in pixels.
        anchors: (M, 4) or (N, M, 4) corners in pixels.

    Returns:
        (N, M, 4) corners, float32 (half precision has no room for pixel coordinates).
    """
    centers = (anchors[..., :2] + anchors[..., 2:]) / 2
    ltrb = ltrb.float()
    top_left, bottom_right = centers - ltrb[..., :2], centers + ltrb[..., 2:]
    return torch.cat((top_left, bottom_right), dim=-1)
