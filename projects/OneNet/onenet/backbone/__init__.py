"""Backbones beyond Detectron2's own."""

from .resnet_deconv import DeconvNeck, ResNetDeconv, build_resnet_deconv_backbone

__all__ = ["DeconvNeck", "ResNetDeconv", "build_resnet_deconv_backbone"]
