"""The deconvolution neck and its deformable convolution."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicStem
from torch.nn import functional as F

from onenet.modeling.backbone import DeconvNeck, ResNetDeconv
from onenet.modeling.backbone.resnet_deconv import ModulatedDeformConv, UpStage


def tiny_backbone(deform: bool) -> ResNetDeconv:
    bottom_up = ResNet(
        BasicStem(3, 64, norm="BN"),
        ResNet.make_default_stages(18, norm="BN"),
        out_features=["res2", "res3", "res4", "res5"],
    )
    return ResNetDeconv(bottom_up=bottom_up, channels=(16, 12, 8), deform=deform, norm="BN")


@pytest.mark.parametrize("deform", [True, False])
def test_one_map_of_stride_4(deform: bool) -> None:
    backbone = tiny_backbone(deform)
    assert backbone.size_divisibility == 32
    assert backbone.output_shape() == {"deconv": ShapeSpec(channels=8, stride=4)}
    out = backbone(torch.randn(2, 3, 64, 96))
    assert out["deconv"].shape == (2, 8, 16, 24)
    out["deconv"].sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_deformable_convolution_starts_as_half_a_plain_one() -> None:
    layer, x = ModulatedDeformConv(4, 6), torch.randn(1, 4, 7, 9)
    plain = F.conv2d(x, layer.conv.weight, padding=1)
    torch.testing.assert_close(layer(x), plain / 2, rtol=1e-4, atol=1e-5)


def test_deformable_convolution_with_whole_offsets_shifts_the_input() -> None:
    layer, x = ModulatedDeformConv(4, 6), torch.randn(1, 4, 9, 9)
    with torch.no_grad():
        # Offsets lie as (dy, dx) pairs, tap by tap, then the mask: all taps look one row down
        # and two columns right, with a mask of (almost) 1.
        layer.offset.bias[:18:2], layer.offset.bias[1:18:2] = 1.0, 2.0
        layer.offset.bias[18:] = 30.0
    shifted = torch.zeros_like(x)
    shifted[..., :-1, :-2] = x[..., 1:, 2:]
    inside = (..., slice(1, -2), slice(1, -3))
    plain = F.conv2d(shifted, layer.conv.weight, padding=1)
    torch.testing.assert_close(layer(x)[inside], plain[inside], rtol=1e-4, atol=1e-5)


def test_up_sampling_starts_bilinear() -> None:
    stage = UpStage(4, 4, deform=False, norm="BN")
    x = torch.randn(1, 4, 6, 6)
    bilinear = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    inside = (..., slice(1, -1), slice(1, -1))  # the borders differ: zeros against repetition
    torch.testing.assert_close(stage.up_sample(x)[inside], bilinear[inside])


def test_neck_needs_one_lateral_a_stage() -> None:
    shapes = [ShapeSpec(channels=8, stride=s) for s in (32, 16, 8, 4)]
    with pytest.raises(ValueError):
        DeconvNeck(shapes, [8, 8], deform=False, norm="BN")
