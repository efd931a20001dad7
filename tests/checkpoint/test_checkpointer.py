"""Checkpoints of any origin, read and converted as they are loaded."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from random_models import (
    CONFIGS,
    SMALLEST,
    State,
    config,
    depth,
    digits_model,
    has_all,
    original,
)
from torch import nn

from onenet.checkpoint import OneNetCheckpointer, load_weights
from onenet.utils.errors import ConfigError


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
