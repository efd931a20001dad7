"""torchvision's ImageNet weights, converted for Detectron2's ResNet."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from random_models import State, config, depth, digits_model
from torch import Tensor, nn

from onenet.checkpoint import OneNetCheckpointer, load_weights
from onenet.checkpoint.convert import convert_foreign
from onenet.modeling.backbone.features import check_imagenet_input
from onenet.utils.errors import ConfigError


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


def test_published_files_count_no_batches(resnet18_state: State, tmp_path: Path) -> None:
    """torchvision's oldest files are of a time before batch norm did."""
    path = tmp_path / "old.pth"
    state = {k: v for k, v in resnet18_state.items() if "num_batches" not in k}
    torch.save(state, path)
    model = digits_model("MODEL.RESNETS.NORM", "BN")
    OneNetCheckpointer(model).load(str(path))
    kernel = model.backbone.bottom_up.stem.conv1.weight
    assert torch.equal(kernel.cpu(), state["conv1.weight"])


def test_input_is_compared_in_grey_levels() -> None:
    check_imagenet_input("x", "RGB", [123.7, 116.3, 103.5], [58.4, 57.1, 57.4])
    with pytest.raises(ConfigError, match="x want RGB"):
        check_imagenet_input("x", "RGB", [123.7, 116.3, 103.5], [1.0, 1.0, 1.0])
