"""Backbones from timm."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import ModuleType

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn
from torch.nn import functional as F

from ...utils.errors import ConfigError
from .features import FeatureBackbone, check_imagenet_input, feature_name
from .resnet_deconv import ResNetDeconv

__all__ = [
    "build_retinanet_timm_fpn_backbone",
    "build_timm_backbone",
    "build_timm_deconv_backbone",
    "build_timm_fpn_backbone",
]


def _import_timm(backbone_name: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"MODEL.BACKBONE.NAME is '{backbone_name}', which needs the package timm: pip install"
            " timm."
        ) from error
    return timm


def _check_input(timm: ModuleType, name: str, cfg: CfgNode) -> None:
    """Checks the config against the mean and deviation of these timm weights."""
    try:
        trained = timm.get_pretrained_cfg(name)
    except RuntimeError:  # unknown weights tag
        trained = None
    if trained is None or not trained.has_weights:
        raise ConfigError(
            f"MODEL.TIMM.PRETRAINED: timm has no weights for '{name}'; set it to False."
        )
    check_imagenet_input(
        f"timm's weights of {name}",
        cfg.INPUT.FORMAT,
        cfg.MODEL.PIXEL_MEAN,
        cfg.MODEL.PIXEL_STD,
        trained.mean,
        trained.std,
    )


def _create(timm: ModuleType, name: str, pretrained: bool, outputs: list[int] | None) -> nn.Module:
    kwargs = {} if outputs is None else {"out_indices": outputs}
    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **kwargs)
    except Exception as error:
        # RuntimeError, AttributeError, errors of the hub without a connection, ...
        weights = " and its weights" if pretrained else ""
        raise ConfigError(
            f"MODEL.TIMM.NAME: timm cannot give the feature maps of '{name}'{weights} ({error})."
        ) from error


def _body(timm: ModuleType, name: str, out_features: list[str], pretrained: bool) -> nn.Module:
    """Builds the network up to the coarsest map of ``out_features``."""
    body = _create(timm, name, pretrained, None)
    names = [feature_name(stride) for stride in body.feature_info.reduction()]
    wanted = [i for i, feature in enumerate(names) if feature in out_features]
    if not wanted:
        raise ConfigError(f"MODEL.TIMM.OUT_FEATURES is {out_features}; {name} has {names}.")
    if wanted[-1] == len(names) - 1:
        return body
    body = _create(timm, name, pretrained, list(range(wanted[-1] + 1)))
    models = timm.models
    if isinstance(
        body, models.efficientnet.EfficientNetFeatures | models.mobilenetv3.MobileNetV3Features
    ):
        # timm would build and run all stages of these
        body.blocks = body.blocks[: body.feature_info.info[wanted[-1]]["stage"]]
    return body


class SamePadConv2d(nn.Conv2d):
    """timm's ``Conv2dSame`` for maps whose sides are multiples of the stride.

    TensorFlow's "SAME" padding depends on the map's size in general, but is constant for such maps.
    A constant keeps the export fast: with symbolic padding it takes more than ten minutes.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """
        Args:
            conv: the convolution to copy; weights are shared.
        """
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",  # initialise nothing, draw no random numbers
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.same_padding: list[int] = []  # left, right, top, bottom
        for size, stride, dilation in zip(
            reversed(conv.kernel_size),
            reversed(conv.stride),
            reversed(conv.dilation),
            strict=True,
        ):
            total = max((size - 1) * dilation + 1 - stride, 0)
            self.same_padding += [total // 2, total - total // 2]

    def forward(self, x: Tensor) -> Tensor:
        """See :class:`torch.nn.Conv2d`."""
        return super().forward(F.pad(x, self.same_padding))


def _fix_same_padding(backbone: FeatureBackbone) -> FeatureBackbone:
    """Makes padding constant, for backbones under an FPN: images are padded to its strides."""
    from timm.layers import Conv2dSame

    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Conv2dSame:
                setattr(module, name, SamePadConv2d(child))
    return backbone


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FeatureBackbone:
    """The timm network of ``MODEL.TIMM``, without a neck.

    Weights are random, or timm's trained ones with PRETRAINED and no MODEL.WEIGHTS.

    Raises:
        ConfigError: timm is not installed, a value is wrong, the network has no feature maps of
            suitable strides, or its weights cannot be downloaded.
    """
    node = cfg.MODEL.TIMM
    timm = _import_timm(cfg.MODEL.BACKBONE.NAME)
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        raise ConfigError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}, but only a ResNet's"
            f" stages can be frozen, and {cfg.MODEL.BACKBONE.NAME} has none; set it to 0."
        )
    if not timm.is_model(node.NAME):
        raise ConfigError(
            f"MODEL.TIMM.NAME is '{node.NAME}', which timm {timm.__version__} does not know;"
            " timm.list_models() names those that it does."
        )
    pretrained = node.PRETRAINED and not cfg.MODEL.WEIGHTS
    if pretrained:
        _check_input(timm, node.NAME, cfg)
    return FeatureBackbone(
        _body(timm, node.NAME, list(node.OUT_FEATURES), pretrained), node.OUT_FEATURES
    )


def _check_features(bottom_up: Backbone, names: Sequence[str], what: str) -> None:
    shapes = bottom_up.output_shape()
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ConfigError(f"{what} {missing}; the backbone's OUT_FEATURES are {sorted(shapes)}.")


def _fpn(bottom_up: Backbone, cfg: CfgNode, top_block: nn.Module) -> FPN:
    fpn = cfg.MODEL.FPN
    _check_features(bottom_up, fpn.IN_FEATURES, "MODEL.FPN.IN_FEATURES names")
    strides = [bottom_up.output_shape()[name].stride for name in fpn.IN_FEATURES]
    if not strides or any(b != 2 * a for a, b in itertools.pairwise(strides)):
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {fpn.IN_FEATURES}; name neighbouring feature maps, the"
            " finest first, such as ['res3', 'res4', 'res5']."
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block,
        fuse_type=fpn.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A timm network with FPN and one more level, pooled from the coarsest: p2 to p6.

    Raises:
        ConfigError: as :func:`build_timm_backbone`, or the features are missing or no neighbours.
    """
    pool = LastLevelMaxPool()
    fpn = _fpn(_fix_same_padding(build_timm_backbone(cfg, input_shape)), cfg, pool)
    # Detectron2's class always pools p5
    pool.in_feature = cfg.MODEL.FPN.IN_FEATURES[-1].replace("res", "p")
    return fpn


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A timm network with FPN and p6 and p7 from res5, as ``build_retinanet_resnet_fpn_backbone``.

    Raises:
        ConfigError: as :func:`build_timm_fpn_backbone`.
    """
    bottom_up = _fix_same_padding(build_timm_backbone(cfg, input_shape))
    _check_features(bottom_up, ["res5"], "The pyramid's p6 and p7 need")
    channels = bottom_up.output_shape()["res5"].channels
    return _fpn(bottom_up, cfg, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


@BACKBONE_REGISTRY.register()
def build_timm_deconv_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNetDeconv:
    """A timm network with the deconvolution neck, for the point head.

    Raises:
        ConfigError: as :func:`build_timm_backbone`, or one of res2 to res5 is missing.
    """
    bottom_up = build_timm_backbone(cfg, input_shape)
    _check_features(bottom_up, ["res2", "res3", "res4", "res5"], "The deconvolution neck needs")
    return ResNetDeconv(cfg, bottom_up)
