"""A checkpoint of the authors' code, and torchvision's ResNet-18."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from random_models import SMALLEST, State, original


@pytest.fixture(scope="module")
def small() -> State:
    """The smallest of the authors' models."""
    return original(SMALLEST)


@pytest.fixture
def small_file(small: State, tmp_path: Path) -> str:
    """The path of a file with it."""
    path = tmp_path / "original.pth"
    # As Detectron2's trainer writes it
    torch.save({"model": small, "iteration": 269999, "optimizer": {}, "scheduler": {}}, path)
    return str(path)


@pytest.fixture(scope="module")
def resnet18_state() -> State:
    return torchvision.models.resnet18(weights=None).state_dict()
