"""OneNet (arXiv 2012.05780) for Detectron2: end-to-end one-stage detection without NMS.

Importing the package registers its meta-architectures, heads, matchers, backbones and datasets.
"""

import warnings

with warnings.catch_warnings():
    # Of fvcore and Detectron2
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    from . import data
    from .config import add_onenet_config
    from .detector import Detections, Detector
    from .engine import load_config
    from .modeling import baselines
    from .modeling.backbone import ResNetDeconv
    from .modeling.criterion import Criterion
    from .modeling.heads import FCOSHead, PointHead, RetinaNetHead
    from .modeling.matcher import HungarianMatcher, MinCostMatcher
    from .modeling.meta_arch import OneNet
    from .structures import DenseBoxes, DensePredictions
    from .utils.errors import ConfigError, DataError

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Criterion",
    "DataError",
    "DenseBoxes",
    "DensePredictions",
    "Detections",
    "Detector",
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
