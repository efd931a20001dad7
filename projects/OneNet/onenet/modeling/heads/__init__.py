"""Dense prediction heads: what every sample predicts, in one common type."""

from .build import ONENET_HEAD_REGISTRY, build_head
from .fcos import FCOSHead
from .point import PointHead
from .retinanet import RetinaNetHead

__all__ = [
    "ONENET_HEAD_REGISTRY",
    "FCOSHead",
    "PointHead",
    "RetinaNetHead",
    "build_head",
]
