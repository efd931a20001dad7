"""Dense prediction heads; all return :class:`onenet.structures.DensePredictions`."""

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
