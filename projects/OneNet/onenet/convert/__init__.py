"""Weights of other projects, renamed to this one's modules, with an account of each tensor."""

from .base import Conversion, Step
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
    "convert_foreign",
    "convert_original",
    "convert_torchvision_resnet",
    "is_original",
    "is_torchvision_resnet",
    "torchvision_url",
]
