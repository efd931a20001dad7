"""A tiny dataset, and train_net.py."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.engine import default_argument_parser
from PIL import Image
from tiny_runs import ROOT


@pytest.fixture
def coco_set(tmp_path: Path) -> tuple[Path, Path]:
    """Four noisy images with a bright square each, in COCO format: (json, folder)."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    images, annotations = [], []
    for i in range(1, 5):
        pixels = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        x, y, side = (int(v) for v in rng.integers(4, 28, size=3))
        pixels[y : y + side, x : x + side] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        annotations.append(
            {
                "id": i,
                "image_id": i,
                "category_id": 3 + i % 2,
                "bbox": [x, y, side, side],
                "area": side * side,
                "iscrowd": 0,
            }
        )
    categories = [{"id": 3, "name": "odd"}, {"id": 4, "name": "even"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    return path, folder


@pytest.fixture
def data_opts(coco_set: tuple[Path, Path]) -> list[str]:
    path, folder = coco_set
    return [
        "DATASETS.TRAIN_JSON", str(path), "DATASETS.TRAIN_IMAGE_ROOT", str(folder),
        "DATASETS.TEST_JSON", str(path), "DATASETS.TEST_IMAGE_ROOT", str(folder),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def train_net() -> Callable[..., None]:
    """``main`` of train_net.py, called with command-line words."""
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words: str) -> None:
        module.main(default_argument_parser().parse_args(list(words)))

    return call
