"""OneNet (arXiv 2012.05780) for Detectron2: end-to-end one-stage detection without NMS.

Importing the package registers its meta-architectures, heads, matchers, backbones and datasets.
"""

from . import baselines, data
from .backbone import ResNetDeconv
from .config import add_onenet_config, load_config
from .criterion import Criterion
from .heads import FCOSHead, PointHead, RetinaNetHead
from .matcher import HungarianMatcher, MinCostMatcher
from .meta_arch import OneNet
from .structures import DenseBoxes, DensePredictions
from .utils.errors import ConfigError, DataError

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Criterion",
    "DataError",
    "DenseBoxes",
    "DensePredictions",
    "FCOSHead",
    "HungarianMatcher",
    "MinCostMatcher",
    "OneNet",
    "PointHead",
    "ResNetDeconv",
    "RetinaNetHead",
    "add_onenet_config",
    "baselines",
    "data",
    "load_config",
]
