"""timm's networks as backbones, under each neck and head."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from detectron2.engine import default_argument_parser
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from torch import Tensor, nn

from onenet.engine import load_config, setup
from onenet.engine.ema import EMAHook
from onenet.modeling.backbone import FeatureBackbone
from onenet.predictor import Predictor
from onenet.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "digits"
MOBILENET, TIMM = "onenet_fcos_MobileNetV3_FPN", "onenet_fcos_timm_FPN"
BOTH = [MOBILENET, TIMM]
P3_TO_P7 = [
    "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']",
    "MODEL.ONENET.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']",
]  # fmt: skip
POINT = ["MODEL.ONENET.HEAD.NAME", "PointHead", "MODEL.ONENET.IN_FEATURES", "['deconv']"]


def config(name: str, *opts: str):
    data = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.ONENET.NUM_CLASSES", "3"]
    return load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *data, *opts])


def build(name: str, *opts: str) -> nn.Module:
    return build_backbone(config(name, *opts), ShapeSpec(channels=3))


# The wrapper


class Pyramid(nn.Module):
    """Maps of strides 2, 4 and 4 by pooling; batch norm, to see whether it counts."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.last = last or nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.norm(x)
        half, quarter = nn.functional.avg_pool2d(x, 2), nn.functional.avg_pool2d(x, 4)
        return [half, quarter, self.last(torch.cat((quarter, quarter), dim=1))]


def test_maps_are_measured_and_named_by_stride() -> None:
    body = Pyramid()
    backbone = FeatureBackbone(body, ["res2"])
    assert backbone.output_shape() == {"res2": ShapeSpec(channels=6, stride=4)}
    assert backbone.size_divisibility == 4
    assert body.training and body.norm.num_batches_tracked == 0
    x = torch.randn(2, 3, 8, 12)
    out = backbone(x)
    assert list(out) == ["res2"]
    assert torch.equal(out["res2"], body(x)[2])  # of two with one stride the last


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (nn.Flatten(), r"makes \(1, 6144\) of an image"),
        (nn.Upsample(size=(32, 16)), r"makes \(1, 6, 32, 16\)"),
        (nn.Upsample(size=(48, 48)), r"makes \(1, 6, 48, 48\)"),
        (nn.Upsample(size=(256, 256)), r"makes \(1, 6, 256, 256\)"),
        (nn.Conv2d(5, 5, 1), "does not take images of 128 x 128 pixels"),
    ],
)
def test_networks_that_give_no_pyramid(last: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureBackbone(Pyramid(last), ["res2"])


def test_unknown_feature() -> None:
    with pytest.raises(ConfigError, match=r"name \['res5'\]; its network has \['res1', 'res2'"):
        FeatureBackbone(Pyramid(), ["res2", "res5"])


# The two networks


@pytest.mark.parametrize("size", ["small", "large"])
def test_mobilenet_gives_timms_maps(size: str) -> None:
    """The last map of each stride, under its name."""
    name = f"mobilenetv3_{size}_100"
    cfg = config(MOBILENET, "MODEL.TIMM.NAME", name)
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    shapes = backbone.output_shape()
    channels = {"small": (16, 24, 48, 576), "large": (24, 40, 112, 960)}[size]
    assert [(s.channels, s.stride) for s in shapes.values()] == list(
        zip(channels, (4, 8, 16, 32), strict=True)
    )
    network = timm.create_model(name, features_only=True, pretrained=False).eval()
    network.load_state_dict(backbone.body.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = backbone(x), network(x)[1:]  # the first has stride 2
    for key, feature in zip(("res2", "res3", "res4", "res5"), expected, strict=True):
        assert torch.equal(found[key], feature)


@pytest.mark.parametrize("name", BOTH)
def test_what_nobody_needs_is_not_built(name: str) -> None:
    cut = ["MODEL.TIMM.OUT_FEATURES", "['res2', 'res3']"]
    backbone = build(name, "MODEL.FPN.IN_FEATURES", "['res2', 'res3']", *cut)
    assert set(backbone.bottom_up.output_shape()) == {"res2", "res3"}
    maps = backbone(torch.randn(2, 3, 64, 64))
    assert {key: 64 // x.shape[-1] for key, x in maps.items()} == {"p2": 4, "p3": 8, "p4": 16}
    sum(x.sum() for x in maps.values()).backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("neck", "opts", "features"),
    [
        ("build_retinanet_timm_fpn_backbone", P3_TO_P7, {f"p{i}": 2**i for i in range(3, 8)}),
        ("build_timm_deconv_backbone", POINT, {"deconv": 4}),
        (
            "build_timm_fpn_backbone",
            ["MODEL.ONENET.HEAD.NAME", "RetinaNetHead", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16]]"],
            {f"p{i}": 2**i for i in range(2, 7)},
        ),
    ],
)
def test_each_neck_and_head(name: str, neck: str, opts: list[str], features, make_gt) -> None:
    cfg = config(name, "MODEL.BACKBONE.NAME", neck, *opts)
    model = build_model(cfg)
    shapes = model.backbone.output_shape()
    assert {k: v.stride for k, v in shapes.items()} == features
    assert model.backbone.size_divisibility == 32
    batch = [
        {
            "image": torch.randint(0, 256, (3, 64, 90), dtype=torch.uint8),
            "instances": make_gt(2, (64, 90), 3),
        }
        for _ in range(2)
    ]
    losses = model(batch)
    sum(losses.values()).backward()
    used = set(cfg.MODEL.ONENET.IN_FEATURES)
    if used == set(shapes):
        assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        assert len(model.eval()(batch)[0]["instances"]) > 0


@pytest.mark.parametrize("name", BOTH)
def test_average_of_the_weights_is_a_working_copy(name: str) -> None:
    model = build_model(config(name))
    average = EMAHook(model, 0.9).average
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model.eval(), average.eval()
        assert torch.equal(average.backbone(x)["p2"], model.backbone(x)["p2"])
        model.train(), average.train()
        assert torch.equal(average.backbone(x)["p2"], model.backbone(x)["p2"])


# Errors


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        (MOBILENET, ["MODEL.BACKBONE.FREEZE_AT", "2"], "FREEZE_AT is 2, but .*; set it to 0"),
        (
            MOBILENET,
            ["MODEL.TIMM.OUT_FEATURES", "['res2', 'res3']"],
            r"FPN.IN_FEATURES names \['res4', 'res5'\]; .* \['res2', 'res3'\]",
        ),
        (MOBILENET, ["MODEL.TIMM.OUT_FEATURES", "['p2']"], r"_small_100 has \['res1', 'res2'"),
        (MOBILENET, ["MODEL.FPN.IN_FEATURES", "[]"], r"MODEL.FPN.IN_FEATURES is \[\]; name neigh"),
        (
            MOBILENET,
            ["MODEL.FPN.IN_FEATURES", "['res2', 'res4']"],
            "name neighbouring feature maps",
        ),
        (MOBILENET, ["MODEL.FPN.IN_FEATURES", "['res3', 'res2']"], "the finest first"),
        (
            TIMM,
            ["MODEL.TIMM.PRETRAINED", "True", "MODEL.TIMM.NAME", "resnet10t.nonsense"],
            "timm has no weights for 'resnet10t.nonsense'; set it to False",
        ),
        (
            MOBILENET,
            ["MODEL.TIMM.PRETRAINED", "True", "INPUT.FORMAT", "BGR"],
            "timm's weights of mobilenetv3_small_100 want RGB images",
        ),
        (TIMM, ["MODEL.TIMM.NAME", "resnet10x"], "which timm .* does not know"),
        (
            TIMM,
            [
                "MODEL.TIMM.PRETRAINED",
                "True",
                "MODEL.TIMM.NAME",
                "mobilenetv3_large_100.miil_in21k",
            ],
            r"want RGB images .* \[0.0, 0.0, 0.0\] and \[255.0",
        ),
        (
            TIMM,
            ["MODEL.TIMM.NAME", "vit_tiny_patch16_224"],
            "does not take images of 128 x 128 pixels",
        ),
        (TIMM, ["MODEL.TIMM.OUT_FEATURES", "['p2']"], r"resnet10t has \['res1'"),
    ],
)
def test_errors_name_key_and_cure(name: str, opts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, *opts)


def test_deconvolution_and_p7_say_what_they_need() -> None:
    cut = ["MODEL.TIMM.OUT_FEATURES", "['res3', 'res4']"]
    for neck, message in (
        ("build_timm_deconv_backbone", r"neck needs \['res2', 'res5'\]"),
        ("build_retinanet_timm_fpn_backbone", r"p6 and p7 need \['res5'\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(MOBILENET, "MODEL.BACKBONE.NAME", neck, *cut)


def test_without_timm_only_building_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what Python does where it is not installed
    cfg = config(TIMM)
    with pytest.raises(ConfigError, match="'build_timm_fpn_backbone', which needs .*: pip install"):
        build_backbone(cfg, ShapeSpec(channels=3))


def test_pretrained_weights_are_for_the_start_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """With MODEL.WEIGHTS nothing is downloaded; without a connection the network is named."""
    calls = []

    def no_connection(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", no_connection)
    wanted = ["MODEL.TIMM.PRETRAINED", "True"]
    build(MOBILENET, *wanted, "MODEL.WEIGHTS", "model_final.pth")
    assert not calls
    with pytest.raises(ConfigError, match="'mobilenetv3_small_100' and its weights .no route to"):
        build(MOBILENET, *wanted)
    assert calls


def test_pyramid_to_p7_names_neighbours_too() -> None:
    opts = ["MODEL.BACKBONE.NAME", "build_retinanet_timm_fpn_backbone"]
    with pytest.raises(ConfigError, match=r"MODEL.FPN.IN_FEATURES is \[\]; name neighbouring"):
        build(MOBILENET, *opts, "MODEL.FPN.IN_FEATURES", "[]")


@pytest.mark.parametrize("name", BOTH)
def test_trained_models_need_no_download(name: str, tmp_path: Path, monkeypatch) -> None:
    """Neither where they are used, nor where their training goes on; the config is unchanged."""

    def no_connection(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", no_connection)
    weights = tmp_path / "model_final.pth"
    torch.save({"model": build_model(config(name)).state_dict()}, weights)
    wanted = ["MODEL.TIMM.PRETRAINED", "True", "INPUT.FORMAT", "RGB"]
    cfg = config(name, *wanted)
    with pytest.raises(ConfigError, match="no route to host"):
        build_model(cfg)
    Predictor(cfg, str(weights))
    assert cfg.MODEL.TIMM.PRETRAINED

    words = [
        "--config-file", str(CONFIGS / f"{name}.yaml"), "--resume", *wanted, "MODEL.DEVICE", "cpu",
        "DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.ONENET.NUM_CLASSES", "3",
        "OUTPUT_DIR", str(tmp_path),
    ]  # fmt: skip
    args = default_argument_parser().parse_args(words)
    assert setup(args).MODEL.TIMM.PRETRAINED  # nothing to resume
    (tmp_path / "last_checkpoint").write_text(weights.name)
    build_model(setup(args))
    assert "PRETRAINED: true" in (tmp_path / "config.yaml").read_text()


# From training to export


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_trains_and_exports(name: str, tiny_set: list[str], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    config_file, out = str(CONFIGS / f"{name}.yaml"), tmp_path / "out"
    common = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", *tiny_set]

    def run(*words: str) -> None:
        result = subprocess.run(
            [sys.executable, *words, *common], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]

    run(
        "train_net.py", "--config-file", config_file, "OUTPUT_DIR", str(out),
        "SOLVER.MAX_ITER", "20", "SOLVER.WARMUP_ITERS", "5", "SOLVER.IMS_PER_BATCH", "2",
    )  # fmt: skip
    losses = [
        json.loads(line)["total_loss"]
        for line in (out / "metrics.json").read_text().splitlines()
        if "total_loss" in line
    ]
    assert all(loss < 1000 for loss in losses) and losses  # nan is not
    exported = out / "model.onnx"
    run(
        "tools/export.py", "--config-file", config_file, "--weights",
        str(out / "model_final.pth"), "--output", str(exported),
    )  # fmt: skip
    assert exported.stat().st_size > 1_000_000
