"""Baselines with NMS.

Detectron2's RetinaNet can be built from a yaml config; its FCOS is in no registry and needs this
adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.fcos import FCOSHead as DetectronFCOSHead

from ..utils.registry import check_num_classes

__all__ = ["FCOSBaseline"]


@META_ARCH_REGISTRY.register()
class FCOSBaseline(FCOS):
    """Detectron2's FCOS (arXiv 1904.01355), for yaml configs."""

    @configurable
    def __init__(self, *, channels_last: bool = False, **kwargs: Any) -> None:
        """
        Args:
            channels_last: as :class:`onenet.modeling.meta_arch.OneNet`'s.
            **kwargs: see :class:`detectron2.modeling.meta_arch.fcos.FCOS`.
        """
        super().__init__(**kwargs)
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Reads ``cfg.MODEL.FCOS``."""
        check_num_classes(cfg)
        fcos = cfg.MODEL.FCOS
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        input_shape = [shapes[name] for name in fcos.IN_FEATURES]
        head = DetectronFCOSHead(
            input_shape=input_shape,
            num_classes=fcos.NUM_CLASSES,
            conv_dims=[input_shape[0].channels] * fcos.NUM_CONVS,
            norm=fcos.NORM,
            prior_prob=fcos.PRIOR_PROB,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": fcos.IN_FEATURES,
            "num_classes": fcos.NUM_CLASSES,
            "center_sampling_radius": fcos.CENTER_SAMPLING_RADIUS,
            "test_score_thresh": fcos.SCORE_THRESH_TEST,
            "test_topk_candidates": fcos.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": fcos.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "channels_last": cfg.MODEL.ONENET.CHANNELS_LAST,
        }
