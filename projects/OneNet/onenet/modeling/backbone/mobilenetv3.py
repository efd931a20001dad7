"""torchvision's MobileNetV3 (arXiv 1905.02244) as a backbone."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from ...checkpoint import read_checkpoint
from ...checkpoint.convert.base import check_imagenet_input, download_cure, hub_file
from ...utils.errors import ConfigError
from .features import (
    FeatureBackbone,
    check_nothing_frozen,
    feature_name,
    measure,
    with_deconv,
    with_fpn,
    with_retinanet_fpn,
)
from .resnet_deconv import ResNetDeconv

__all__ = [
    "build_mobilenetv3_backbone",
    "build_mobilenetv3_deconv_backbone",
    "build_mobilenetv3_fpn_backbone",
    "build_retinanet_mobilenetv3_fpn_backbone",
]

_NAMES = ("mobilenet_v3_large", "mobilenet_v3_small")


class LayerOutputs(nn.Module):
    """Layers one behind the other; gives what some of them make.

    Not torchvision's ``create_feature_extractor``: of its two graphs, for training and evaluation,
    a copy keeps one only, and the average of SOLVER.EMA_DECAY is a copy.
    """

    def __init__(self, layers: nn.Sequential, outputs: list[int]) -> None:
        """
        Args:
            layers: those behind the last output are left out.
            outputs: indices of the layers whose results are wanted, ascending.
        """
        super().__init__()
        self.layers = layers[: outputs[-1] + 1]
        self.outputs = outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to the wanted results."""
        results = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.outputs:
                results.append(x)
        return results


def _last_of_each_stride(layers: nn.Sequential) -> dict[str, int]:
    """The index of the layer that makes the last map of each stride, by the map's name."""
    shapes = measure(LayerOutputs(layers, list(range(len(layers)))))
    return {feature_name(stride): i for i, (_, stride) in enumerate(shapes)}


def _pretrained(name: str, cfg: CfgNode) -> nn.Module:
    weights = get_model_weights(name)["IMAGENET1K_V1"]
    check_imagenet_input(
        "torchvision's weights", cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    )
    try:
        path = hub_file(weights.url)
    except (OSError, RuntimeError) as error:  # no connection; another hash
        raise ConfigError(
            f"MODEL.MOBILENET.PRETRAINED: the weights {download_cure(weights.url, error)}."
        ) from error
    network = get_model(name, weights=None)
    network.load_state_dict(read_checkpoint(path)["model"])
    return network


@BACKBONE_REGISTRY.register()
def build_mobilenetv3_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FeatureBackbone:
    """MobileNetV3 as ``MODEL.MOBILENET`` says.

    Its weights are torchvision's initial ones, or ImageNet's with PRETRAINED and no MODEL.WEIGHTS.

    Raises:
        ConfigError: a value is wrong, or weights cannot be downloaded.
    """
    node = cfg.MODEL.MOBILENET
    if node.NAME not in _NAMES:
        raise ConfigError(
            f"MODEL.MOBILENET.NAME is '{node.NAME}'; choose one of {', '.join(_NAMES)}."
        )
    check_nothing_frozen(cfg)
    wants_weights = node.PRETRAINED and not cfg.MODEL.WEIGHTS
    network = _pretrained(node.NAME, cfg) if wants_weights else get_model(node.NAME, weights=None)
    found = _last_of_each_stride(network.features)
    outputs = sorted(index for name, index in found.items() if name in node.OUT_FEATURES)
    if not outputs:
        raise ConfigError(
            f"MODEL.MOBILENET.OUT_FEATURES is {node.OUT_FEATURES}; choose from {list(found)}."
        )
    return FeatureBackbone(LayerOutputs(network.features, outputs), node.OUT_FEATURES)


@BACKBONE_REGISTRY.register()
def build_mobilenetv3_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MobileNetV3 with a pyramid; see :func:`onenet.modeling.backbone.features.with_fpn`."""
    return with_fpn(build_mobilenetv3_backbone(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_retinanet_mobilenetv3_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same with p6 and p7; see :func:`onenet.modeling.backbone.features.with_retinanet_fpn`."""
    return with_retinanet_fpn(build_mobilenetv3_backbone(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_mobilenetv3_deconv_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNetDeconv:
    """MobileNetV3 with the deconvolution neck, for the point head."""
    return with_deconv(build_mobilenetv3_backbone(cfg, input_shape), cfg)
