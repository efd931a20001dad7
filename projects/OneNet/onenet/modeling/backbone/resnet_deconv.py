"""ResNet with a deconvolution neck: one feature map of stride 4, after CenterNet."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

__all__ = ["DeconvNeck", "ResNetDeconv", "build_resnet_deconv_backbone"]

_IN_FEATURES = ("res5", "res4", "res3", "res2")


class ModulatedDeformConv(nn.Module):
    """3x3 deformable convolution v2 (arXiv 1811.11168) that predicts its own offsets and mask.

    Uses torchvision's operator, which also runs on the CPU. Offsets start at 0 and the mask at 0.5:
    initially it is a convolution with halved outputs.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(in_channels, 18 + 9, kernel_size=3, padding=1)
        self.conv = DeformConv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        weight_init.c2_msra_fill(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C_in, H, W) to (N, C_out, H, W)."""
        # Channels: an offset (y, x) for each of the nine taps, then the nine mask weights
        offset, mask = self.offset(x).split([18, 9], dim=1)
        return self.conv(x, offset, mask.sigmoid())


class UpStage(nn.Module):
    """3x3 (deformable) convolution, norm, ReLU; 4x4 transposed convolution of stride 2, norm, ReLU.

    The transposed convolution is initialised as bilinear up-sampling of each channel.
    """

    def __init__(self, in_channels: int, out_channels: int, *, deform: bool, norm: str) -> None:
        super().__init__()
        if deform:
            self.conv = ModulatedDeformConv(in_channels, out_channels)
        else:
            self.conv = Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
            weight_init.c2_msra_fill(self.conv)
        self.norm = get_norm(norm, out_channels) or nn.Identity()
        self.up_sample = nn.ConvTranspose2d(
            out_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False
        )
        self.up_norm = get_norm(norm, out_channels) or nn.Identity()
        _init_bilinear(self.up_sample.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C_in, H, W) to (N, C_out, 2H, 2W)."""
        x = F.relu(self.norm(self.conv(x)))
        return F.relu(self.up_norm(self.up_sample(x)))


def _init_bilinear(weight: Tensor) -> None:
    """Fills the (C, C, 4, 4) weights of a stride-2 transposed convolution: bilinear up-sampling."""
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        weight.zero_()
        channel = torch.arange(len(weight))
        weight[channel, channel] = torch.outer(ramp, ramp)


class DeconvNeck(nn.Module):
    """Three up-sampling stages with lateral connections, then a 3x3 convolution.

    ``x = stage(x) + lateral(next finer map)``, three times.
    """

    def __init__(
        self, input_shape: list[ShapeSpec], channels: list[int], *, deform: bool, norm: str
    ) -> None:
        """
        Args:
            input_shape: shapes of the four feature maps, coarsest (stride 32) first.
            channels: output channels of the three stages.
            deform: whether the stages' 3x3 convolutions are deformable.
            norm: normalisation of the stages, a name of ``detectron2.layers.get_norm``.
        """
        super().__init__()
        ins = [input_shape[0].channels, *channels[:-1]]
        self.stages = nn.ModuleList(
            UpStage(i, o, deform=deform, norm=norm) for i, o in zip(ins, channels, strict=True)
        )
        self.laterals = nn.ModuleList(
            Conv2d(shape.channels, out, kernel_size=1)
            for shape, out in zip(input_shape[1:], channels, strict=True)
        )
        self.output = Conv2d(channels[-1], channels[-1], kernel_size=3, padding=1)
        for conv in (*self.laterals, self.output):
            weight_init.c2_xavier_fill(conv)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps features of strides 32, 16, 8, 4 to one map (N, C, H / 4, W / 4)."""
        x, *finer = features
        for stage, lateral, feature in zip(self.stages, self.laterals, finer, strict=True):
            x = stage(x) + lateral(feature)
        return self.output(x)


class ResNetDeconv(Backbone):
    """A bottom-up network with a :class:`DeconvNeck`; its output "deconv" has stride 4."""

    @configurable
    def __init__(
        self,
        *,
        bottom_up: Backbone,
        channels: tuple[int, ...] = (256, 128, 64),
        deform: bool = True,
        norm: str = "BN",
    ) -> None:
        """
        Args:
            bottom_up: returns feature maps res5 to res2 of strides 32, 16, 8 and 4.
            channels: output channels of the neck's three stages.
            deform: whether its 3x3 convolutions are deformable.
            norm: its normalisation.
        """
        super().__init__()
        shapes = bottom_up.output_shape()
        self.bottom_up = bottom_up
        input_shape = [shapes[name] for name in _IN_FEATURES]
        self.neck = DeconvNeck(input_shape, list(channels), deform=deform, norm=norm)
        self._out_features = ["deconv"]
        self._out_feature_channels = {"deconv": channels[-1]}
        self._out_feature_strides = {"deconv": input_shape[-1].stride}
        self._size_divisibility = input_shape[0].stride

    @classmethod
    def from_config(cls, cfg: CfgNode, bottom_up: Backbone) -> dict:
        """Reads ``cfg.MODEL.ONENET.DECONV``."""
        deconv = cfg.MODEL.ONENET.DECONV
        return {
            "bottom_up": bottom_up,
            "channels": deconv.CHANNELS,
            "deform": deconv.DEFORM,
            "norm": deconv.NORM,
        }

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride, so that up-sampled maps have the size of the finer ones."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps (N, 3, H, W), both sides multiples of 32, to {"deconv": (N, C, H / 4, W / 4)}."""
        features = self.bottom_up(x)
        return {"deconv": self.neck([features[name] for name in _IN_FEATURES])}


@BACKBONE_REGISTRY.register()
def build_resnet_deconv_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNetDeconv:
    """ResNet of ``MODEL.RESNETS`` (OUT_FEATURES res2 to res5) with the deconvolution neck."""
    return ResNetDeconv(cfg, build_resnet_backbone(cfg, input_shape))
