"""Paths such as "torchvision://resnet18", and the files that they stand for."""

from __future__ import annotations

import urllib.error

import pytest
import torch
import torchvision
from random_models import digits_model

from onenet.checkpoint import OneNetCheckpointer
from onenet.checkpoint.convert import torchvision_url
from onenet.utils.errors import ConfigError


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
