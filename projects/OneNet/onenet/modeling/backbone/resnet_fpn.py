"""A ResNet with FPN whose coarsest levels are made from p5, as in FCOS."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7, build_retinanet_resnet_fpn_backbone

__all__ = ["build_resnet_fpn_p5_backbone"]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_p5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ``build_retinanet_resnet_fpn_backbone``, but p6 and p7 from p5, not res5.

    Source: FCOS (arXiv 1904.01355), section 4.1; torchvision's FCOS.
    """
    fpn = build_retinanet_resnet_fpn_backbone(cfg, input_shape)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    fpn.top_block = LastLevelP6P7(channels, channels, in_feature="p5")
    return fpn
