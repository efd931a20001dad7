"""What the heads share: towers, initialisation, boxes from distances."""

from __future__ import annotations

import math

import torch
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TowerHead", "init_head", "ltrb_to_corners"]


class TowerHead(nn.Module):
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

    def predict(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (N, C, H, W) of each level to its logits (N, HWA, K) and box values (N, HWA, 4)."""
        logits = [self.cls_score(self.cls_subnet(feature)) for feature in features]
        boxes = [self.bbox_pred(self.bbox_subnet(feature)) for feature in features]
        return (
            [permute_to_N_HWA_K(level, self.num_classes) for level in logits],
            [permute_to_N_HWA_K(level, 4) for level in boxes],
        )


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
    predictor_std: float | None = None,
) -> None:
    """Initialises every convolution of a head, and the biases of ``cls_score``, ``bbox_pred``.

    Weights are Xavier-uniform, as in the authors' code; other biases are 0.

    Args:
        head: has the two predictors ``cls_score`` and ``bbox_pred``.
        prior_prob: around which every class score starts (arXiv 1708.02002, section 4.1).
        box_bias: what box predictions start around. Where a ReLU follows it has to be positive:
            a side whose distance starts below zero gets no gradient through it.
        predictor_std: of normal weights in the two predictors, in place of Xavier's.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if predictor_std is not None:
        for predictor in (head.bbox_pred, head.cls_score):
            nn.init.normal_(predictor.weight, std=predictor_std)
    nn.init.constant_(head.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))
    nn.init.constant_(head.bbox_pred.bias, box_bias)


def ltrb_to_corners(ltrb: Tensor, anchors: Tensor) -> Tensor:
    """Boxes from the distances of their sides to the anchors' centres.

    Args:
        ltrb: (N, M, 4) left, top, right, bottom in pixels.
        anchors: (M, 4) corners in pixels.

    Returns:
        (N, M, 4) corners, float32 (half precision has no room for pixel coordinates).
    """
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2  # (M, 2)
    ltrb = ltrb.float()
    top_left, bottom_right = centers - ltrb[..., :2], centers + ltrb[..., 2:]
    return torch.cat((top_left, bottom_right), dim=-1)
