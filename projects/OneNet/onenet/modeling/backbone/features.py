"""Backbones from any network that returns feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import Tensor, nn

from ...utils.errors import ConfigError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "FeatureBackbone",
    "check_imagenet_input",
    "feature_name",
    "measure",
    "without_pretrained",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in 0..1
_PROBE = 128  # side of the test image in pixels


def feature_name(stride: int) -> str:
    """ "res2" for stride 4 and so on, as Detectron2 names a ResNet's feature maps."""
    return f"res{stride.bit_length() - 1}"


@torch.no_grad()
def measure(body: nn.Module) -> list[tuple[int, int]]:
    """Channels and stride of each of a network's feature maps, found by running it once.

    Args:
        body: maps (1, 3, H, W) to a list of feature maps.

    Raises:
        ConfigError: the network fails, or an output is not a (N, C, H, W) map whose stride is a
            power of two.
    """
    was_training = body.training
    body.eval()  # keeps the blank image out of batch norm statistics
    try:
        maps = body(torch.zeros(1, 3, _PROBE, _PROBE))
    except Exception as error:
        raise ConfigError(
            f"The backbone's network does not take images of {_PROBE} x {_PROBE} pixels, but OneNet"
            f" sends images of any size; choose another one ({error})."
        ) from error
    finally:
        body.train(was_training)
    return [_channels_and_stride(feature.shape) for feature in maps]


def _channels_and_stride(shape: torch.Size) -> tuple[int, int]:
    stride = _PROBE // shape[-1] if len(shape) == 4 else 0
    if stride < 1 or stride & (stride - 1) or shape[-2:] != (_PROBE // stride,) * 2:
        raise ConfigError(
            f"The backbone's network makes {tuple(shape)} of an image of {_PROBE} x {_PROBE}"
            " pixels, which is no (N, C, H, W) map with a power of two as stride; choose another"
            " one."
        )
    return shape[1], stride


class FeatureBackbone(Backbone):
    """A network as a backbone, its feature maps named as a ResNet's: res2 (stride 4) to res5 (32).

    So Detectron2's necks for ResNets fit. Nothing is frozen, and norm layers are the network's own.
    """

    def __init__(self, body: nn.Module, out_features: Sequence[str]) -> None:
        """
        Args:
            body: maps (N, 3, H, W) to a list of feature maps (N, C, H / stride, W / stride). Of
                several maps of one stride the last is used.
            out_features: names of the maps to return.

        Raises:
            ConfigError: see :func:`measure`; or a name is unknown.
        """
        super().__init__()
        self.body = body
        measured = measure(body)
        self._names = [feature_name(stride) for _, stride in measured]
        missing = [name for name in out_features if name not in self._names]
        if missing:
            raise ConfigError(
                f"The backbone's OUT_FEATURES name {missing}; its network has {self._names}."
            )
        self._out_features = list(out_features)
        by_name = dict(zip(self._names, measured, strict=True))
        self._out_feature_channels = {name: by_name[name][0] for name in out_features}
        self._out_feature_strides = {name: by_name[name][1] for name in out_features}

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride, so that each map is exactly half as large as the next finer one."""
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps (N, 3, H, W), both sides multiples of 32, to feature maps by name."""
        maps = dict(zip(self._names, self.body(x), strict=True))
        return {name: maps[name] for name in self._out_features}


def check_imagenet_input(
    what: str,
    input_format: str,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Checks that the input is normalised as in the training of pre-trained weights.

    Otherwise the weights would load, but be of little use.

    Args:
        what: name of the weights, for the message.
        input_format: INPUT.FORMAT.
        pixel_mean, pixel_std: MODEL.PIXEL_MEAN and PIXEL_STD, in 0..255.
        mean, std: those of the weights' training, RGB in 0..1.

    Raises:
        ConfigError: the config differs by more than half a grey level.
    """
    wanted_mean = [round(255 * value, 3) for value in mean]
    wanted_std = [round(255 * value, 3) for value in std]
    if (
        input_format == "RGB"
        and np.allclose(pixel_mean, wanted_mean, rtol=0, atol=0.5)
        and np.allclose(pixel_std, wanted_std, rtol=0, atol=0.5)
    ):
        return
    raise ConfigError(
        f"{what} want RGB images with their own mean and deviation, but the config has INPUT.FORMAT"
        f" {input_format}, MODEL.PIXEL_MEAN {np.round(pixel_mean, 3).tolist()} and MODEL.PIXEL_STD"
        f" {np.round(pixel_std, 3).tolist()}; set them to RGB, {wanted_mean} and {wanted_std}."
    )


def without_pretrained(cfg: CfgNode) -> CfgNode:
    """Returns a frozen copy that downloads no weights, for models that load a checkpoint."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.freeze()
    return cfg
