"""The authors' checkpoints and torchvision's ImageNet weights, converted.

Names and shapes of the authors' tensors are written down here once more, from their published code
(PeizeSun/OneNet), so that the conversion is held against them and not against itself. That
converted heads give the authors' outputs is tests/test_golden.py's, on state dicts of theirs.
"""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import logging
import os
import pickle
import re
import sys
import urllib.error
from pathlib import Path
from typing import IO

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from torch import Tensor, nn

from onenet.checkpoint import OneNetCheckpointer, load_weights
from onenet.checkpoint.convert import convert_foreign, convert_original, torchvision_url
from onenet.engine import Trainer, load_config
from onenet.modeling.backbone.features import check_imagenet_input
from onenet.modeling.backbone.resnet_deconv import ModulatedDeformConv
from onenet.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
NO_DATA = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
MODELS = {
    "coco/onenet_point_R18_dcn": ("point", 18, True, 80),
    "coco/onenet_point_R18_nodcn": ("point", 18, False, 80),
    "coco/onenet_point_R50_dcn": ("point", 50, True, 80),
    "coco/onenet_point_R50_nodcn": ("point", 50, False, 80),
    "coco/onenet_retinanet_R50_FPN": ("retinanet", 50, False, 80),
    "coco/onenet_fcos_R50_FPN": ("fcos", 50, False, 80),
    "crowdhuman/onenet_retinanet_R50_FPN": ("retinanet", 50, False, 1),
    "crowdhuman/onenet_fcos_R50_FPN": ("fcos", 50, False, 1),
}
SMALLEST = "coco/onenet_point_R18_dcn"

State = dict[str, Tensor]


def config(name: str, *opts: str):
    kind = ["MODEL.ONENET.NUM_CLASSES", str(MODELS[name][3])] if name in MODELS else []
    path = str(CONFIGS / f"{name}.yaml")
    return load_config(path, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *NO_DATA, *kind, *opts])


# The authors' names and shapes


def conv(name: str, out: int, inp: int, size: int, bias: bool = True) -> State:
    weight = torch.randn(out, inp, size, size) / (inp * size * size) ** 0.5  # keeps what goes in
    tensors = {f"{name}.weight": weight}
    return {**tensors, f"{name}.bias": torch.randn(out)} if bias else tensors


def batch_norm(name: str, channels: int) -> State:
    return {
        f"{name}.weight": torch.randn(channels),
        f"{name}.bias": torch.randn(channels),
        f"{name}.running_mean": torch.randn(channels),
        f"{name}.running_var": torch.rand(channels) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def point_head(channels: list[int], num_classes: int, dcn: bool) -> State:
    state = {}
    laterals = [channels[0] // 2, channels[0] // 4, channels[0] // 8]
    for i, (inp, out) in enumerate(itertools.pairwise(channels), start=1):
        stage = f"head.deconv.deconv{i}"
        if dcn:
            state |= conv(f"{stage}.dcn_offset", 27, inp, 3)
            state |= conv(f"{stage}.dcn", out, inp, 3, bias=False)
            state |= batch_norm(f"{stage}.dcn_bn", out)
        else:
            state |= conv(f"{stage}.conv", out, inp, 3)
            state |= batch_norm(f"{stage}.bn", out)
        state |= conv(f"{stage}.up_sample", out, out, 4, bias=False)
        state |= batch_norm(f"{stage}.up_bn", out)
        state |= conv(f"head.deconv.lateral_conv{i}", out, laterals[i - 1], 1)
    last = channels[-1]
    state |= conv("head.deconv.output_conv", last, last, 3)
    state |= conv("head.feat1", last, last, 3)
    state |= conv("head.cls_score", num_classes, last, 3)
    return state | conv("head.ltrb_pred", 4, last, 3)


def tower_head(kind: str, num_classes: int) -> State:
    state = {}
    num_anchors, modules = (1, 3) if kind == "fcos" else (9, 2)
    for tower, i in itertools.product(("cls", "reg"), range(4)):
        name = f"head.{tower}_conv_module"
        state |= conv(f"{name}.{modules * i}", 256, 256, 3, bias=False)
        if kind == "fcos":
            state |= {
                f"{name}.{modules * i + 1}.weight": torch.randn(256),
                f"{name}.{modules * i + 1}.bias": torch.randn(256),
            }
    state |= conv("head.cls_score", num_anchors * num_classes, 256, 3)
    if kind == "fcos":
        state |= conv("head.ltrb_pred", 4, 256, 3)
        return state | {f"head.scales.{i}.scale": torch.rand(1) for i in range(5)}
    state |= conv("head.bbox_pred", 36, 256, 3)
    return state | {f"head.anchor_generator.cell_anchors.{i}": anchors(32 * 2**i) for i in range(5)}


def anchors(size: float) -> Tensor:
    """Nine anchors around the origin: three sizes, each in three aspect ratios (height / width)."""
    boxes = []
    for octave, ratio in itertools.product(range(3), (0.5, 1.0, 2.0)):
        area = (size * 2 ** (octave / 3)) ** 2
        width = (area / ratio) ** 0.5
        boxes.append([-width / 2, -ratio * width / 2, width / 2, ratio * width / 2])
    return torch.tensor(boxes)


def backbone(cfg, kind: str) -> nn.Module:
    """Detectron2's own, whose names the authors have."""
    resnet = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    if kind == "point":
        return resnet
    return FPN(resnet, ["res3", "res4", "res5"], 256, top_block=LastLevelP6P7(2048, 256))


def random_like(name: str, value: Tensor) -> Tensor:
    """Weights that do not make a network overflow, and none with batch norm's initial values."""
    if name.endswith("running_var"):
        return torch.rand(value.shape) + 0.5
    if value.dim() == 4:
        return torch.randn(value.shape) / value[0].numel() ** 0.5
    return torch.randn(value.shape) * 0.1 if value.is_floating_point() else value


def original(name: str) -> State:
    """A whole model of the authors' code, with random weights."""
    kind, depth, dcn, num_classes = MODELS[name]
    network = backbone(config(name), kind)
    state = {f"backbone.{k}": random_like(k, v) for k, v in network.state_dict().items()}
    if kind == "point":
        channels = [512 if depth == 18 else 2048, 256, 128, 64]
        return state | point_head(channels, num_classes, dcn)
    return state | tower_head(kind, num_classes)


@pytest.fixture(scope="module")
def small() -> State:
    return original(SMALLEST)


@pytest.fixture
def small_file(small: State, tmp_path: Path) -> str:
    path = tmp_path / "original.pth"
    # As Detectron2's trainer writes it
    torch.save({"model": small, "iteration": 269999, "optimizer": {}, "scheduler": {}}, path)
    return str(path)


# Each of the eight models


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


# The deformable convolution


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


# Refusals


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


# On the fly


def has_all(model: nn.Module, state: State) -> bool:
    loaded = model.state_dict()
    return all(torch.equal(loaded[k], v) for k, v in convert_original(state).state.items())


def test_tools_and_trainer_convert_on_the_fly(
    small: State, small_file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(config(SMALLEST))
    with caplog.at_level(logging.INFO, logger="onenet"):
        load_weights(model, small_file)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "onenet.checkpoint.checkpointer"]
    assert f"authors' code, {len(small)} tensors: " in line and "; 0 of the model" in line
    assert has_all(model, small)
    # What is saved then is a checkpoint of this project
    DetectionCheckpointer(model, str(tmp_path)).save("ours")
    again = OneNetCheckpointer(build_model(config(SMALLEST)))
    again.load(str(tmp_path / "ours.pth"))
    assert again.conversion is None and has_all(again.model, small)


def test_new_classes_are_for_the_trainer_only(small: State, small_file: str) -> None:
    cfg = config(SMALLEST, "MODEL.ONENET.NUM_CLASSES", "3")
    with pytest.raises(ConfigError, match="another shape head.cls_score.weight"):
        OneNetCheckpointer(build_model(cfg)).load(small_file)
    checkpointer = OneNetCheckpointer(build_model(cfg), new_classes=True)
    start = checkpointer.model.head.cls_score.weight.clone()
    checkpointer.load(small_file)
    head = checkpointer.model.head
    assert torch.equal(head.cls_score.weight, start)
    assert torch.equal(head.bbox_pred.weight, small["head.ltrb_pred.weight"])


def test_a_checkpoint_of_other_parts_names_the_key(tmp_path: Path) -> None:
    path = str(tmp_path / "model.pth")
    rescores = ("MODEL.ONENET.RESCORING.CANDIDATES", "10")
    for written, read, what in (((), rescores, "lacks"), (rescores, (), "has, and the model")):
        torch.save({"model": build_model(config(SMALLEST, *written)).state_dict()}, path)
        with pytest.raises(ConfigError, match=rf"it {what}.*RESCORING\.CANDIDATES decides"):
            load_weights(build_model(config(SMALLEST, *read)), path)


def test_parts_that_the_authors_lack_are_for_the_trainer_only(
    small: State, small_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(SMALLEST, "MODEL.ONENET.RESCORING.CANDIDATES", "10")
    with pytest.raises(ConfigError, match=r"it lacks rescoring\..*RESCORING\.CANDIDATES decides"):
        OneNetCheckpointer(build_model(cfg)).load(small_file)
    checkpointer = OneNetCheckpointer(build_model(cfg), new_classes=True)
    start = checkpointer.model.rescoring.weights.clone()
    checkpointer.load(small_file)
    assert has_all(checkpointer.model, small)
    assert torch.equal(checkpointer.model.rescoring.weights, start)
    (record,) = [r for r in caplog.records if r.name == "onenet.checkpoint.checkpointer"]
    assert record.levelno == logging.WARNING and "stay as initialised" in record.getMessage()


def test_recommended_settings_start_from_the_authors_fcos(tmp_path: Path) -> None:
    state, path = original("coco/onenet_fcos_R50_FPN"), tmp_path / "original.pth"
    torch.save({"model": state}, path)
    bases = [str(CONFIGS / "coco" / "onenet_fcos_R50_FPN.yaml"), str(CONFIGS / "Recommended.yaml")]
    (tmp_path / "mine.yaml").write_text(json.dumps({"_BASE_": bases}))
    model = build_model(config(str(tmp_path / "mine"), "MODEL.ONENET.NUM_CLASSES", "3"))
    assert model.rescoring is not None
    OneNetCheckpointer(model, new_classes=True).load(str(path))
    tower = model.head.cls_subnet[0].weight
    assert torch.equal(tower, state["head.cls_conv_module.0.weight"])


def test_prefix_of_data_parallel(small: State, resnet18_state: State, tmp_path: Path) -> None:
    path = tmp_path / "parallel.pth"
    torch.save({"model": {f"module.{k}": v for k, v in small.items()}}, path)
    model = build_model(config(SMALLEST))
    load_weights(model, str(path))
    assert has_all(model, small)

    network = torchvision.models.resnet18(weights=None)
    torch.save(nn.DataParallel(network).state_dict(), path)
    model = digits_model()
    OneNetCheckpointer(model).load(str(path))
    kernel = model.backbone.bottom_up.stem.conv1.weight
    assert torch.equal(kernel.cpu(), network.conv1.weight.cpu())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "foreign.pth holds no weights"),
        ({"model": {}}, "foreign.pth holds no weights"),
        (
            {"a.weight": torch.ones(1)},
            r"none of its 1 tensors \(the first: a.weight\) has the name",
        ),
        ({"backbone.bottom_up.stem.conv1.weight": torch.ones(1)}, "none of its 1 tensors"),
    ],
)
def test_nothing_of_the_file_is_the_models(content, message: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.pth"
    torch.save(content, path)
    with pytest.raises(ConfigError, match=message):
        OneNetCheckpointer(digits_model()).load(str(path))


def test_imagenet_pickle_for_another_network(tmp_path: Path) -> None:
    content = {
        "model": {"stem.conv1.weight": torch.randn(64, 3, 7, 7).numpy()},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps(content))
    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"]
    for more in (opts, depth(50)):  # another shape is no match either
        model = digits_model(*more, "MODEL.RESNETS.STEM_OUT_CHANNELS", "32")
        with pytest.raises(ConfigError, match="R-18.pkl are not of the model .*none of its 1 tens"):
            OneNetCheckpointer(model).load(str(path))


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_frozen_batch_norm_does_not_make_statistics_up(
    resnet18_state: State, tmp_path: Path, statistic: str
) -> None:
    path = tmp_path / "without.pth"
    model = digits_model("MODEL.RESNETS.NORM", "FrozenBN")
    torch.save({k: v for k, v in resnet18_state.items() if k != f"bn1.{statistic}"}, path)
    name = f"backbone.bottom_up.stem.conv1.norm.{statistic}"
    with pytest.raises(ConfigError, match=f"it lacks {name}"):
        OneNetCheckpointer(model).load(str(path))
    torch.save({k: v for k, v in model.state_dict().items() if k != name}, path)
    with pytest.raises(ConfigError, match=f"it lacks {name}"):
        load_weights(model, str(path))


def test_published_files_count_no_batches(resnet18_state: State, tmp_path: Path) -> None:
    """torchvision's oldest files are of a time before batch norm did."""
    path = tmp_path / "old.pth"
    state = {k: v for k, v in resnet18_state.items() if "num_batches" not in k}
    torch.save(state, path)
    model = digits_model("MODEL.RESNETS.NORM", "BN")
    OneNetCheckpointer(model).load(str(path))
    kernel = model.backbone.bottom_up.stem.conv1.weight
    assert torch.equal(kernel.cpu(), state["conv1.weight"])


def test_checkpointer_can_be_used_again(small_file: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.pth"
    path.write_bytes(b"")
    checkpointer = OneNetCheckpointer(build_model(config(SMALLEST)))
    with pytest.raises(ConfigError, match="no checkpoint"):
        checkpointer.load(str(path))
    checkpointer.load(small_file)
    assert checkpointer.conversion is not None


def test_imagenet_pickles_are_read_as_detectron2_reads_them(tmp_path: Path) -> None:
    """ImageNet models of ``detectron2://`` are pickles with their own way of renaming."""
    cfg = config(SMALLEST)
    kernel = torch.randn(64, 3, 7, 7)
    content = {
        "model": {"stem.conv1.weight": kernel.numpy()},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps(content))
    model = build_model(cfg)
    OneNetCheckpointer(model).load(str(path))
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, kernel)


# Files that are none


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_file_runs_code(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "was_here"
    torch.save({"model": {"head.feat1.weight": Payload(trace)}}, path)
    with pytest.raises(ConfigError, match="no checkpoint that torch can read without running"):
        OneNetCheckpointer(build_model(config(SMALLEST))).load(str(path))
    assert not trace.exists()


@pytest.fixture(scope="module")
def tool():
    """``convert`` and ``main`` of tools/convert_checkpoint.py."""
    path = ROOT / "tools" / "convert_checkpoint.py"
    spec = importlib.util.spec_from_file_location("convert_checkpoint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p, f: p.write_bytes(Path(f).read_bytes()[:100_000]), "no checkpoint that torch"),
        (lambda p, f: p.write_bytes(b""), "no checkpoint that torch"),
        (lambda p, f: torch.save([1, 2], p), "holds no weights"),
        (lambda p, f: torch.save({"state_dict": {"a": torch.ones(1)}}, p), "holds no weights"),
        (lambda p, f: torch.save({"a.weight": torch.ones(1)}, p), "first: a.weight"),
        (lambda p, f: torch.save({}, p), "holds no weights"),
        (lambda p, f: None, "There is no file"),
    ],
)
def test_foreign_files_are_refused_with_a_sentence(
    tool, small_file: str, tmp_path: Path, write, message: str
) -> None:
    path = tmp_path / "foreign.pth"
    write(path, small_file)
    with pytest.raises(ConfigError, match=message) as caught:
        tool.convert(str(path), str(CONFIGS / f"{SMALLEST}.yaml"), [])
    assert "foreign.pth" in str(caught.value) and "\n" not in str(caught.value)


# The program


def run_tool(tool, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *words])
    tool.main()


def test_program(tool, monkeypatch, capsys, small: State, small_file: str, tmp_path: Path) -> None:
    output, report = tmp_path / "converted.pth", tmp_path / "report.txt"
    run_tool(
        tool, monkeypatch, small_file, "--config-file", str(CONFIGS / f"{SMALLEST}.yaml"),
        "--output", str(output), "--report", str(report), "MODEL.ONENET.NUM_CLASSES", "80",
    )  # fmt: skip
    assert f"{len(small)} tensors: " in capsys.readouterr().out
    lines = report.read_text().splitlines()
    assert len(lines) == 1 + len(small) + 2  # heading, tensors, blank line and summary
    (offset,) = [line.split() for line in lines if "deconv2.dcn_offset.weight" in line]
    assert offset == [
        "head.deconv.deconv2.dcn_offset.weight", "27x256x3x3",
        "backbone.neck.stages.1.conv.offset.weight", "27x256x3x3", "renamed",
    ]  # fmt: skip
    model = build_model(config(SMALLEST))
    load_weights(model, str(output))
    assert has_all(model, small)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "converted.pth", "original.pth", "report.txt",
    ]  # fmt: skip


def test_program_leaves_nothing_of_a_failure(
    tool, monkeypatch, small_file: str, tmp_path: Path
) -> None:
    output = tmp_path / "converted.pth"
    other = str(CONFIGS / "coco" / "onenet_point_R18_nodcn.yaml")
    words = (small_file, "--config-file", other, "--output")
    with pytest.raises(SystemExit, match="error: The weights .*original.pth are not of the model"):
        run_tool(tool, monkeypatch, *words, str(output))
    with pytest.raises(SystemExit, match="is a folder; give the path of a file"):
        run_tool(tool, monkeypatch, *words, str(tmp_path))
    with pytest.raises(SystemExit, match="There is no folder .*nowhere"):
        run_tool(tool, monkeypatch, *words, str(tmp_path / "nowhere" / "x.pth"))

    def full_disk(content: object, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full_disk)
    fitting = (small_file, "--config-file", str(CONFIGS / f"{SMALLEST}.yaml"), "--output")
    with pytest.raises(SystemExit, match="converted.pth cannot be written .No space left"):
        run_tool(tool, monkeypatch, *fitting, str(output), "MODEL.ONENET.NUM_CLASSES", "80")
    assert [p.name for p in tmp_path.iterdir()] == ["original.pth"]


# torchvision


def randomise(network: nn.Module) -> nn.Module:
    """Statistics that are not batch norm's initial ones."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return network.eval()


def torchvision_maps(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    maps = {}
    for i in range(1, 5):
        x = maps[f"res{i + 1}"] = getattr(network, f"layer{i}")(x)
    return maps


def depth(n: int) -> list[str]:
    return [
        "MODEL.RESNETS.DEPTH",
        str(n),
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "64" if n < 50 else "256",
    ]


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("layers", [18, 34, 50, 101])
def test_resnet_gives_torchvisions_maps(layers: int, norm: str, tmp_path: Path) -> None:
    network = randomise(getattr(torchvision.models, f"resnet{layers}")(weights=None))
    path = tmp_path / "imagenet.pth"
    torch.save(network.state_dict(), path)
    opts = [*depth(layers), "MODEL.RESNETS.NORM", norm]
    opts += ["MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"]
    model = build_model(config("coco/onenet_fcos_R50_FPN", *opts)).eval()
    lateral = model.backbone.fpn_lateral3.weight.clone()
    checkpointer = OneNetCheckpointer(model)
    checkpointer.load(str(path))

    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = model.backbone.bottom_up(x), torchvision_maps(network, x)
    for name, feature in expected.items():
        torch.testing.assert_close(found[name], feature, rtol=1e-4, atol=1e-4)
    dropped = {s.source for s in checkpointer.conversion.steps if not s.target}
    assert {"fc.weight", "fc.bias"} == {n for n in dropped if "num_batches" not in n}
    assert (len(dropped) > 2) == (norm == "FrozenBN")
    assert torch.equal(model.backbone.fpn_lateral3.weight, lateral)


def digits_model(*opts: str) -> nn.Module:
    return build_model(config("digits/onenet_fcos_R18_FPN", "MODEL.ONENET.NUM_CLASSES", "3", *opts))


@pytest.fixture(scope="module")
def resnet18_state() -> State:
    return torchvision.models.resnet18(weights=None).state_dict()


def test_what_stays_random_is_said(resnet18_state, tmp_path: Path, caplog) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18_state, path)
    model = digits_model()
    with caplog.at_level(logging.INFO, logger="onenet"):
        OneNetCheckpointer(model).load(str(path))
    rest = [n for n in model.state_dict() if not n.startswith("backbone.bottom_up.")]
    lines = [r.getMessage() for r in caplog.records if r.name == "onenet.checkpoint.checkpointer"]
    assert lines and "from torchvision's ResNet, 122 tensors: 120 renamed, 2 dropped" in lines[0]
    assert f"; {len(rest)} of the model's tensors stay as initialised." in lines[0]
    with pytest.raises(ConfigError, match=r"it lacks backbone\.fpn_"):
        load_weights(model, str(path))  # for use, all is wanted


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT BGR"),
        (["MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"], r"PIXEL_MEAN \[103.53, 116.28"),
        (depth(34), "it lacks backbone.bottom_up.res2.2"),
        (depth(50), "in another shape|lacks"),
        (["MODEL.RESNETS.NORM", "GN"], "does not, backbone.bottom_up.stem.conv1.norm.running_mean"),
        (["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"], "the model has 0"),
    ],
)
def test_settings_that_would_ruin_it(resnet18_state, tmp_path: Path, opts, message: str) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18_state, path)
    with pytest.raises(ConfigError, match=f"resnet18.pth are not of the model .*({message})"):
        OneNetCheckpointer(digits_model(*opts)).load(str(path))


def test_bottleneck_of_torchvision(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), path)
    with pytest.raises(ConfigError, match="set MODEL.RESNETS.STRIDE_IN_1X1 to False"):
        OneNetCheckpointer(digits_model(*depth(50), "MODEL.RESNETS.STRIDE_IN_1X1", "True")).load(
            str(path)
        )


def test_shorter_resnet_takes_the_first_stages(resnet18_state) -> None:
    model = digits_model(
        "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3']", "MODEL.FPN.IN_FEATURES",
        "['res2', 'res3']", "MODEL.ONENET.IN_FEATURES", "['p2', 'p3']",
    )  # fmt: skip
    conversion = convert_foreign(resnet18_state, model)
    reasons = {s.action for s in conversion.steps if s.source.startswith("layer4.")}
    assert reasons == {"dropped: the config's ResNet ends before res5"}
    assert not any(".res4." in name or ".res5." in name for name in conversion.state)


def test_urls_are_torchvisions_own() -> None:
    for name in ("resnet18", "resnet34", "resnet50", "resnet101"):
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        assert torchvision_url(f"torchvision://{name}") == weights.url
    with pytest.raises(ConfigError, match="'torchvision://resnet19'; .* one of resnet18, "):
        torchvision_url("torchvision://resnet19")


def test_torchvision_path_is_downloaded_once(resnet18_state, tmp_path, monkeypatch) -> None:
    """From torch.hub's folder if the file is there; else an error that tells the cure."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    calls = []

    def no_connection(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_connection)
    with pytest.raises(ConfigError, match="no route to host.*give its path as MODEL.WEIGHTS") as e:
        OneNetCheckpointer(digits_model()).load("torchvision://resnet18")
    url = torchvision_url("torchvision://resnet18")
    assert url in str(e.value) and str(tmp_path) in str(e.value) and len(calls) == 1

    folder = tmp_path / "checkpoints"
    folder.mkdir(exist_ok=True)
    torch.save(resnet18_state, folder / url.rsplit("/", 1)[1])
    model = digits_model()
    OneNetCheckpointer(model).load("torchvision://resnet18")
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, resnet18_state["conv1.weight"])
    assert len(calls) == 1


@pytest.mark.parametrize("size", [0, 1000])
def test_broken_file_in_the_hubs_folder(size: int, resnet18_state, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / torchvision_url("torchvision://resnet18").rsplit("/", 1)[1]
    path.parent.mkdir()
    torch.save(resnet18_state, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ConfigError, match=f"{path.name} is no checkpoint that torch can read"):
        OneNetCheckpointer(digits_model()).load("torchvision://resnet18")


def test_input_is_compared_in_grey_levels() -> None:
    check_imagenet_input("x", "RGB", [123.7, 116.3, 103.5], [58.4, 57.1, 57.4])
    with pytest.raises(ConfigError, match="x want RGB"):
        check_imagenet_input("x", "RGB", [123.7, 116.3, 103.5], [1.0, 1.0, 1.0])


# train_net.py


class TrainerWithoutData(Trainer):
    @classmethod
    def build_train_loader(cls, cfg) -> list:
        return []


def test_trainer_starts_from_converted_weights(resnet18_state, tmp_path: Path) -> None:
    """With the average of the weights, too, which takes its start from them."""
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18_state, path)
    for decay in ("0.0", "0.9"):
        cfg = config(
            "digits/onenet_fcos_R18_FPN", "MODEL.ONENET.NUM_CLASSES", "3",
            "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path), "SOLVER.EMA_DECAY", decay,
        )  # fmt: skip
        trainer = TrainerWithoutData(cfg)
        trainer.resume_or_load(resume=False)
        kernel = trainer.model.backbone.bottom_up.stem.conv1.weight
        assert torch.equal(kernel.cpu(), resnet18_state["conv1.weight"])


def test_trainer_knows_the_input_of_a_model_that_does_not(resnet18_state, tmp_path: Path) -> None:
    """Detectron2's FCOS."""
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18_state, path)
    cfg = config(
        "digits/baseline_fcos_R18_FPN", "MODEL.FCOS.NUM_CLASSES", "3",
        "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path), "INPUT.FORMAT", "BGR",
    )  # fmt: skip
    trainer = TrainerWithoutData(cfg)
    assert not hasattr(trainer.model, "input_format")
    with pytest.raises(ConfigError, match="the config has INPUT.FORMAT BGR"):
        trainer.resume_or_load(resume=False)


def test_resuming_from_a_checkpoint_that_is_gone(train_net, tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    words = [
        "--config-file", str(CONFIGS / f"{SMALLEST}.yaml"), "--resume", "MODEL.DEVICE", "cpu",
        "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path), *NO_DATA,
        "MODEL.ONENET.NUM_CLASSES", "80",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="names '.*model_0000009.pth', and there is no such file"):
        train_net(default_argument_parser().parse_args(words))


@pytest.fixture(scope="module")
def train_net():
    """``main`` of train_net.py."""
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_evaluation_of_an_original_from_the_command_line(
    train_net, small: State, tiny_set: list[str], tmp_path: Path
) -> None:
    path, out = tmp_path / "original.pth", tmp_path / "out"
    state = {k: v[:1] if k.startswith("head.cls_score.") else v for k, v in small.items()}
    torch.save({"model": state}, path)
    words = [
        "--config-file", str(CONFIGS / f"{SMALLEST}.yaml"), "--eval-only",
        "MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64",
        "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(out), *tiny_set,
    ]  # fmt: skip
    train_net(default_argument_parser().parse_args(words))
    log = (out / "log.txt").read_text()
    assert f"Converted from a checkpoint of the authors' code, {len(small)} tensors" in log
    assert (out / "inference" / "coco_instances_results.json").is_file()
