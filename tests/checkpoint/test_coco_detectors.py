"""OneNet from torchvision's FCOS and Detectron2's RetinaNet, compared with these themselves."""

from __future__ import annotations

import logging
import pickle
import re
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.utils.file_io import Detectron2Handler
from torch import Tensor, nn

from onenet.checkpoint import OneNetCheckpointer, load_weights
from onenet.checkpoint.convert import torchvision_url
from onenet.engine import load_config
from onenet.structures import DensePredictions
from onenet.utils.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COCO_80 = MetadataCatalog.get("coco_2017_train").thing_classes
RECOMMENDED = "own_data/recommended"
FCOS, RETINANET = "own_data/finetune_fcos_R50_FPN", "own_data/finetune_retinanet_R50_FPN"
NO_RESCORING = ("MODEL.ONENET.RESCORING.CANDIDATES", "0", "MODEL.ONENET.NMS_TEST", "True")

State = dict[str, Tensor]


def config(name: str, num_classes: int = 80, *opts: str) -> CfgNode:
    words = ["MODEL.DEVICE", "cpu", "MODEL.ONENET.NUM_CLASSES", str(num_classes), *opts]
    return load_config(str(CONFIGS / f"{name}.yaml"), words)


def randomise(network: nn.Module) -> nn.Module:
    """Other weights than the initial ones; predictions of some size."""
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.8, 1.2, generator=generator)
        elif value.dim() == 1 and value.is_floating_point():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
        elif name.startswith("head.") and value.dim() == 4:
            scale = 1.4 / value[0].numel() ** 0.5
            value.copy_(scale * torch.randn(value.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def torchvisions() -> nn.Module:
    build = torchvision.models.detection.fcos_resnet50_fpn
    return randomise(build(weights=None, weights_backbone=None))


@pytest.fixture(scope="module")
def detectron2s() -> nn.Module:
    cfg = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_3x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    return randomise(build_model(cfg))


def image() -> Tensor:
    """(3, H, W) RGB in 0..255.

    Sides are multiples of p7's stride: on other images torchvision's anchors of p6 and p7 are apart
    by less than the stride.
    """
    return torch.randint(0, 256, (3, 128, 256)).float()


def onenet_outputs(model: nn.Module, pixels: Tensor) -> tuple[list[Tensor], DensePredictions]:
    """The class tower's features and the predictions of an image in the model's channel order."""
    with torch.no_grad():
        images = model.preprocess_image([{"image": pixels}])
        features = model.backbone(images.tensor)
        features = [features[name] for name in ("p3", "p4", "p5", "p6", "p7")]
        towers = model.head.towers(features)
        return [*towers[0], *towers[1]], model.head(features)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest value."""
    assert found.shape == expected.shape
    largest = float(expected.abs().max())
    assert largest > 0.1
    assert float((found - expected).abs().max()) <= 1e-5 * largest


# torchvision's FCOS


@pytest.mark.parametrize("form", ["BN", "FrozenBN, old names"])
def test_torchvisions_fcos(torchvisions: nn.Module, form: str, tmp_path: Path) -> None:
    """As it was published: frozen batch norm counts no batches, and FPN's blocks had no ".0"."""
    state = torchvisions.state_dict()
    if form != "BN":
        state = {k: v for k, v in state.items() if "num_batches" not in k}
        state = {re.sub(r"(r_blocks\.\d)\.0", r"\1", k): v for k, v in state.items()}
        assert "backbone.fpn.inner_blocks.1.weight" in state
    path = tmp_path / "fcos.pth"
    torch.save(state, path)
    model = build_model(config(FCOS, 80, *NO_RESCORING)).eval()
    assert load_weights(model, str(path)) == COCO_80

    pixels = image()
    towers, found = onenet_outputs(model, pixels)
    with torch.no_grad():
        batch = torchvisions.transform.normalize(pixels / 255)[None]
        features = list(torchvisions.backbone(batch).values())
        outputs = torchvisions.head(features)
        shapes = torchvision.models.detection.image_list.ImageList(batch, [(128, 256)])
        (anchors,) = torchvisions.anchor_generator(shapes, features)
        boxes = torchvisions.head.box_coder.decode(outputs["bbox_regression"], anchors[None])
        expected = [torchvisions.head.classification_head.conv(x) for x in features]
        expected += [torchvisions.head.regression_head.conv(x) for x in features]
    for ours, theirs in zip(towers, expected, strict=True):
        assert_equal(ours, theirs)
    ids = list(MetadataCatalog.get("coco_2017_train").thing_dataset_id_to_contiguous_id)
    assert ids[0] == 1 and ids[-1] == 90
    assert_equal(found.pred_logits, outputs["cls_logits"][..., ids])
    assert_equal(found.pred_boxes, boxes)


def test_report_of_torchvisions_fcos(torchvisions: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "fcos.pth"
    torch.save(torchvisions.state_dict(), path)
    checkpointer = OneNetCheckpointer(build_model(config(FCOS, 80, *NO_RESCORING)))
    checkpointer.load(str(path))
    steps = checkpointer.conversion.steps
    assert sorted(s.source for s in steps) == sorted(torchvisions.state_dict())
    cut = {s.source: (s.source_shape, s.target_shape) for s in steps if s.action[:3] == "cut"}
    assert cut == {
        "head.classification_head.cls_logits.weight": ((91, 256, 3, 3), (80, 256, 3, 3)),
        "head.classification_head.cls_logits.bias": ((91,), (80,)),
    }
    dropped = {s.source for s in steps if not s.target and "num_batches" not in s.source}
    assert dropped == {f"head.regression_head.bbox_ctrness.{k}" for k in ("weight", "bias")}


def test_fcos_of_other_classes_has_a_background(torchvisions: nn.Module, tmp_path: Path) -> None:
    state, path = torchvisions.state_dict(), tmp_path / "fcos.pth"
    for kind in ("weight", "bias"):
        name = f"head.classification_head.cls_logits.{kind}"
        state[name] = state[name][:4].clone()
    torch.save(state, path)
    model = build_model(config(FCOS, 3, *NO_RESCORING))
    assert load_weights(model, str(path)) is None
    bias = state["head.classification_head.cls_logits.bias"]
    assert torch.equal(model.head.cls_score.bias, bias[1:])


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        ("coco/onenet_fcos_R50_FPN", (), "CONV_BIAS True, .*OFFSET 0.0, .*fpn_p5_backbone"),
        ("coco/onenet_retinanet_R50_FPN", (), "NAME FCOSHead, .*finetune_fcos_R50_FPN.yaml"),
        (FCOS, ("INPUT.FORMAT", "BGR"), "want RGB"),
        (FCOS, ("MODEL.ONENET.HEAD.NUM_CONVS", "3"), "has, and the model does not, head"),
        (FCOS, ("MODEL.RESNETS.STRIDE_IN_1X1", "True"), "STRIDE_IN_1X1 to False"),
    ],
)
def test_settings_of_torchvisions_fcos(
    torchvisions: nn.Module, name: str, opts: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "fcos.pth"
    torch.save(torchvisions.state_dict(), path)
    model = build_model(config(name, 80, *opts, *NO_RESCORING))
    with pytest.raises(ConfigError, match=f"fcos.pth are not of the model .*({message})"):
        load_weights(model, str(path))


def test_strange_name_of_torchvisions_fcos(torchvisions: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "fcos.pth"
    model = build_model(config(FCOS, 80, *NO_RESCORING))
    for name, value, message in (
        ("head.iou.weight", torch.ones(1), "'head.iou.weight' is no name of torchvision's FCOS"),
        ("head.classification_head.cls_logits.bias", torch.tensor(1.0), "is a scalar"),
    ):
        torch.save({**torchvisions.state_dict(), name: value}, path)
        with pytest.raises(ConfigError, match=message):
            load_weights(model, str(path))


def test_fcos_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_connection(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_connection)
    url = torchvision_url("torchvision://fcos_resnet50_fpn")
    assert url == torchvision.models.get_model_weights("fcos_resnet50_fpn").COCO_V1.url
    cfg = config(FCOS)
    with pytest.raises(ConfigError, match=f"{url}.* give its path as MODEL.WEIGHTS"):
        OneNetCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)


# Detectron2's RetinaNet


def test_retinanet_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_connection(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(Detectron2Handler, "_get_local_path", no_connection)
    cfg = config(RETINANET)
    url = "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/.*/model_final_5bd44e.pkl"
    with pytest.raises(ConfigError, match=f"download {url} on .* give its path as MODEL.WEIGHTS"):
        OneNetCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_detectron2s_retinanet(detectron2s: nn.Module, suffix: str, tmp_path: Path) -> None:
    """As it was published, with anchors and pixel statistics; and as its trainer writes it."""
    state, path = detectron2s.state_dict(), tmp_path / f"retinanet.{suffix}"
    if suffix == "pkl":
        state["pixel_mean"] = detectron2s.pixel_mean
        for i, anchors in enumerate(detectron2s.anchor_generator.cell_anchors):
            state[f"anchor_generator.cell_anchors.{i}"] = anchors
        arrays = {k: v.numpy() for k, v in state.items()}
        content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({"model": state, "iteration": 269999}, path)
    model = build_model(config(RETINANET, 80, *NO_RESCORING)).eval()
    assert load_weights(model, str(path)) == COCO_80

    pixels = image().flip(0)
    towers, found = onenet_outputs(model, pixels)
    with torch.no_grad():
        images = detectron2s.preprocess_image([{"image": pixels}])
        features = detectron2s.backbone(images.tensor)
        features = [features[name] for name in detectron2s.head_in_features]
        anchors = torch.cat([x.tensor for x in detectron2s.anchor_generator(features)])
        logits, deltas = detectron2s.head(features)
        expected = [detectron2s.head.cls_subnet(x) for x in features]
        expected += [detectron2s.head.bbox_subnet(x) for x in features]
    for ours, theirs in zip(towers, expected, strict=True):
        assert_equal(ours, theirs)
    logits = torch.cat([permute_to_N_HWA_K(x, 80) for x in logits], dim=1)
    deltas = torch.cat([permute_to_N_HWA_K(x, 4) for x in deltas], dim=1)[0]
    assert_equal(found.pred_logits, logits)
    assert_equal(found.pred_boxes[0], detectron2s.box2box_transform.apply_deltas(deltas, anchors))


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        ("coco/onenet_retinanet_R50_FPN", (), "CONV_BIAS True, as in .*finetune_retinanet"),
        (FCOS, (), "NAME RetinaNetHead"),
        (RETINANET, ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]"), "level 0 has 9 anchors"),
    ],
)
def test_settings_of_detectron2s_retinanet(
    detectron2s: nn.Module, name: str, opts: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    path, state = tmp_path / "retinanet.pth", detectron2s.state_dict()
    anchors = next(iter(detectron2s.anchor_generator.cell_anchors))
    state["anchor_generator.cell_anchors.0"] = anchors
    torch.save({"model": state}, path)
    with pytest.raises(ConfigError, match=f"retinanet.pth are not of the model .*({message})"):
        load_weights(build_model(config(name, 80, *NO_RESCORING, *opts)), str(path))


def test_other_input_of_detectron2s_retinanet(
    detectron2s: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "retinanet.pth"
    torch.save({"model": detectron2s.state_dict()}, path)
    load_weights(build_model(config(RETINANET, 80, *NO_RESCORING)), str(path))
    assert not [r for r in caplog.records if r.levelno == logging.WARNING and "onenet" in r.name]
    opts = ("INPUT.FORMAT", "RGB", "MODEL.RESNETS.STRIDE_IN_1X1", "False")
    load_weights(build_model(config(RETINANET, 80, *NO_RESCORING, *opts)), str(path))
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING and "onenet" in r.name]
    text = record.getMessage()
    assert "INPUT.FORMAT BGR, MODEL.RESNETS.STRIDE_IN_1X1 True, and" in text


# Fine-tuning


@pytest.mark.parametrize(("name", "num_anchors"), [(FCOS, 1), (RETINANET, 9)])
def test_classes_of_coco_are_kept(
    name: str, num_anchors: int, torchvisions: nn.Module, detectron2s: nn.Module, tmp_path: Path
) -> None:
    network, path = torchvisions if name == FCOS else detectron2s, tmp_path / "coco.pth"
    torch.save(network.state_dict(), path)
    model = build_model(config(name, 3))
    start = {k: v.clone() for k, v in model.state_dict().items()}
    checkpointer = OneNetCheckpointer(
        model, class_names=["raccoon", "dog", "person"], new_classes=True
    )
    checkpointer.load(str(path))
    state, rows = network.state_dict(), [COCO_80.index("dog"), COCO_80.index("person")]
    if name == FCOS:
        (theirs, rows) = ("head.classification_head.cls_logits", [18, 1])  # COCO's category ids
    else:
        theirs = "head.cls_score"
    for kind in ("weight", "bias"):
        found = model.state_dict()[f"head.cls_score.{kind}"].unflatten(0, (num_anchors, 3))
        trained = state[f"{theirs}.{kind}"].unflatten(0, (num_anchors, -1))
        assert torch.equal(found[:, 1:], trained[:, rows])
        initial = start[f"head.cls_score.{kind}"].unflatten(0, (num_anchors, 3))
        assert torch.equal(found[:, 0], initial[:, 0])
    assert torch.equal(model.rescoring.weights, start["rescoring.weights"])
