"""The authors' checkpoints and this project's models, with random weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from torch import Tensor, nn

from onenet.checkpoint.convert import convert_original
from onenet.engine import load_config

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
    """A whole model of the authors' code, with random weights.

    Names and shapes are written down here once more, from their published code (PeizeSun/OneNet),
    so that the conversion is held against them and not against itself.
    """
    kind, depth, dcn, num_classes = MODELS[name]
    network = backbone(config(name), kind)
    state = {f"backbone.{k}": random_like(k, v) for k, v in network.state_dict().items()}
    if kind == "point":
        channels = [512 if depth == 18 else 2048, 256, 128, 64]
        return state | point_head(channels, num_classes, dcn)
    return state | tower_head(kind, num_classes)


def has_all(model: nn.Module, state: State) -> bool:
    loaded = model.state_dict()
    return all(torch.equal(loaded[k], v) for k, v in convert_original(state).state.items())


def depth(n: int) -> list[str]:
    return [
        "MODEL.RESNETS.DEPTH",
        str(n),
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "64" if n < 50 else "256",
    ]


def digits_model(*opts: str) -> nn.Module:
    return build_model(config("digits/onenet_fcos_R18_FPN", "MODEL.ONENET.NUM_CLASSES", "3", *opts))
