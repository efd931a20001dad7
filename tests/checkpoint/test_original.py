"""The authors' checkpoints, converted; tests/test_golden.py compares the outputs of their heads."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from random_models import MODELS, SMALLEST, State, anchors, config, conv, original, point_head
from torch import Tensor, nn

from onenet.checkpoint import OneNetCheckpointer, load_weights
from onenet.checkpoint.convert import convert_foreign, convert_original
from onenet.modeling.backbone.resnet_deconv import ModulatedDeformConv
from onenet.utils.errors import ConfigError


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_accounted_for(name: str) -> None:
    state, model = original(name), build_model(config(name))
    conversion = convert_foreign(state, model)
    model.load_state_dict(conversion.state, strict=True)  # none is missing, none left over

    assert sorted(step.source for step in conversion.steps) == sorted(state)
    loaded, scales = model.state_dict(), []
    for step in conversion.steps:
        assert step.source_shape == state[step.source].shape
        if step.action.startswith("dropped"):
            assert "cell_anchors" in step.source
            assert re.search(r"the same up to \d\.\de-05 pixels", step.action)  # four decimals
        elif step.action.startswith("joined"):
            scales.append(state[step.source])
        else:
            assert torch.equal(loaded[step.target], state[step.source]), step
            assert step.action == ("kept" if step.source == step.target else "renamed")
    if scales:
        assert torch.equal(loaded["head.scales"], torch.cat(scales))
    kind = MODELS[name][0]
    assert len(scales) == (5 if kind == "fcos" else 0)
    dropped = [step for step in conversion.steps if not step.target]
    assert len(dropped) == (5 if kind == "retinanet" else 0)


@pytest.mark.parametrize(
    ("norm", "theirs", "ours"),
    [
        (True, "cls_conv_module.0.weight", "cls_subnet.0.weight"),
        (True, "cls_conv_module.4.bias", "cls_subnet.1.norm.bias"),
        (True, "reg_conv_module.9.weight", "bbox_subnet.3.weight"),
        (True, "reg_conv_module.10.weight", "bbox_subnet.3.norm.weight"),
        (False, "cls_conv_module.2.weight", "cls_subnet.1.weight"),
        (False, "reg_conv_module.6.weight", "bbox_subnet.3.weight"),
    ],
)
def test_towers_keep_their_place(norm: bool, theirs: str, ours: str) -> None:
    """Equal shapes would not tell one tower, or one convolution, from another."""
    state = {f"head.{theirs}": torch.randn(2)}
    if norm:
        state.setdefault("head.cls_conv_module.1.weight", torch.zeros(2))
    found = convert_original(state).state
    assert torch.equal(found[f"head.{ours}"], state[f"head.{theirs}"])


def test_scales_keep_their_levels() -> None:
    state = {f"head.scales.{i}.scale": torch.tensor([float(i)]) for i in (2, 0, 1)}
    assert convert_original(state).state["head.scales"].tolist() == [0.0, 1.0, 2.0]
    del state["head.scales.1.scale"]
    with pytest.raises(ConfigError, match=r"scales of levels \[0, 2\] only"):
        convert_original(state)


def test_anchors_have_to_be_the_configs() -> None:
    name = "head.anchor_generator.cell_anchors.0"
    ours = [anchors(32)]
    moved = {name: anchors(32) + 0.6}
    assert convert_original(moved).state == {}  # nothing to compare with
    with pytest.raises(ConfigError, match="differ by 0.6 pixels"):
        convert_original(moved, ours)
    with pytest.raises(ConfigError, match="level 0 has 3 anchors a location"):
        convert_original({name: anchors(32)[:3]}, ours)


def reference_deform_conv(x: Tensor, offset_mask: Tensor, weight: Tensor) -> Tensor:
    """What the authors' layer computes, by loops: their chunks, and Detectron2's operator.

    That reads, for tap (i, j), channel 2 (3 i + j) as the way down and the next as the way to the
    right, and interpolates with zeros outside (modulated_deformable_im2col in its CUDA source).
    """
    first, second, mask = offset_mask.chunk(3, dim=1)
    offset, mask = torch.cat((first, second), dim=1), mask.sigmoid()
    _, channels, height, width = x.shape

    def pixel(n: int, row: int, column: int) -> Tensor:
        inside = 0 <= row < height and 0 <= column < width
        return x[n, :, row, column] if inside else torch.zeros(channels, dtype=x.dtype)

    def bilinear(n: int, y: float, right: float) -> Tensor:
        top, left = int(y // 1), int(right // 1)
        down, aside = y - top, right - left
        return (
            (1 - down) * (1 - aside) * pixel(n, top, left)
            + (1 - down) * aside * pixel(n, top, left + 1)
            + down * (1 - aside) * pixel(n, top + 1, left)
            + down * aside * pixel(n, top + 1, left + 1)
        )

    out = torch.zeros(len(x), len(weight), height, width, dtype=x.dtype)
    for n, row, column in itertools.product(range(len(x)), range(height), range(width)):
        for i, j in itertools.product(range(3), range(3)):
            tap = 3 * i + j
            y = row - 1 + i + float(offset[n, 2 * tap, row, column])
            right = column - 1 + j + float(offset[n, 2 * tap + 1, row, column])
            sample = bilinear(n, y, right) * mask[n, tap, row, column]
            out[n, :, row, column] += weight[:, :, i, j] @ sample
    return out


def test_deformable_convolution_gives_the_authors_results() -> None:
    stage = "head.deconv.deconv1"
    state = conv(f"{stage}.dcn_offset", 27, 3, 3) | conv(f"{stage}.dcn", 5, 3, 3, bias=False)
    state[f"{stage}.dcn_offset.weight"] *= 4
    converted = convert_original(state).state
    prefix = "backbone.neck.stages.0.conv."
    layer = ModulatedDeformConv(3, 5).double()
    layer.load_state_dict({k.removeprefix(prefix): v.double() for k, v in converted.items()})
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    offset_mask = nn.functional.conv2d(
        x,
        state[f"{stage}.dcn_offset.weight"].double(),
        state[f"{stage}.dcn_offset.bias"].double(),
        padding=1,
    )
    # Offsets of several pixels, so that the order of channels matters, and the border is crossed
    assert offset_mask[:, :18].abs().max() > 3
    with torch.no_grad():
        found = layer(x)
    expected = reference_deform_conv(x, offset_mask, state[f"{stage}.dcn.weight"].double())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.feat1.bias"), "it lacks head.conv.bias"),
        (lambda s: s.pop("backbone.res3.0.conv1.weight"), "it lacks backbone.bottom_up.res3.0"),
        (lambda s: s.update({"head.iou.weight": s["head.feat1.bias"]}), "'head.iou.weight' is no"),
        (
            lambda s: s.update({"head.conv.bias": s["head.feat1.bias"]}),
            "'head.conv.bias' is no name",
        ),
        (
            lambda s: s.update({"backbone.stem.fc.weight": s["head.feat1.bias"]}),
            "it has, and the model does not, backbone.bottom_up.stem.fc.weight",
        ),
        (
            lambda s: s.update(
                {"head.deconv.deconv1.dcn_offset.weight": torch.zeros(18, 512, 3, 3)}
            ),
            "another shape backbone.neck.stages.0.conv.offset.weight",
        ),
        (
            lambda s: s.update({"head.deconv.deconv1.bn.bias": s["head.feat1.bias"]}),
            "two tensors for backbone.neck.stages.0.norm.bias",
        ),
    ],
)
def test_missing_and_left_over_tensors(small: State, change, message: str, tmp_path: Path) -> None:
    state = dict(small)
    change(state)
    path = tmp_path / "changed.pth"
    torch.save({"model": state}, path)
    for load in (load_weights, lambda model, file: OneNetCheckpointer(model).load(file)):
        with pytest.raises(ConfigError, match=f"changed.pth are not of the model .*: .*{message}"):
            load(build_model(config(SMALLEST)), str(path))


@pytest.mark.parametrize(
    ("other", "opts", "message"),
    [
        ("coco/onenet_point_R18_nodcn", [], r"it lacks backbone.neck.stages.0.conv.weight"),
        ("coco/onenet_fcos_R50_FPN", [], "another shape backbone.bottom_up.res2"),
        (SMALLEST, ["INPUT.FORMAT", "BGR"], "want RGB images .* INPUT.FORMAT BGR"),
        (SMALLEST, ["MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"], r"set them to RGB, \[123.675"),
        (SMALLEST, ["MODEL.ONENET.NUM_CLASSES", "3"], "another shape head.cls_score.weight and 1"),
    ],
)
def test_checkpoint_of_another_model(small_file: str, other: str, opts, message: str) -> None:
    with pytest.raises(ConfigError, match=f"original.pth are not of the model .*({message})"):
        load_weights(build_model(config(other, *opts)), small_file)


def test_bottleneck_stride_is_checked() -> None:
    name = "coco/onenet_point_R50_nodcn"
    model = build_model(config(name, "MODEL.RESNETS.STRIDE_IN_1X1", "True"))
    with pytest.raises(ConfigError, match="set MODEL.RESNETS.STRIDE_IN_1X1 to False"):
        convert_foreign(point_head([2048, 256, 128, 64], 80, dcn=False), model)
