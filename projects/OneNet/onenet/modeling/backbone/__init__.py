"""Backbones beyond Detectron2's own."""

from .features import FeatureBackbone
from .resnet_deconv import DeconvNeck, ResNetDeconv, build_resnet_deconv_backbone
from .resnet_fpn import build_resnet_fpn_p5_backbone
from .timm_features import (
    build_retinanet_timm_fpn_backbone,
    build_timm_backbone,
    build_timm_deconv_backbone,
    build_timm_fpn_backbone,
)

__all__ = [
    "DeconvNeck",
    "FeatureBackbone",
    "ResNetDeconv",
    "build_resnet_deconv_backbone",
    "build_resnet_fpn_p5_backbone",
    "build_retinanet_timm_fpn_backbone",
    "build_timm_backbone",
    "build_timm_deconv_backbone",
    "build_timm_fpn_backbone",
]
