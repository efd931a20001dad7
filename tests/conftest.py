"""Fixtures and helpers that several test files share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import logger as detectron2_logger
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
START = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option by which .ci/run keeps its limit on a slow machine."""
    parser.addoption(
        "--begin-within",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="skip the tests that would begin later than so many seconds after the start",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what would begin too late."""
    limit = item.config.getoption("--begin-within")
    if time.monotonic() - START > limit:
        pytest.skip(f"it would have begun later than {limit:.0f} s after the start")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout's top folder."""
    return ROOT


@pytest.fixture(autouse=True)
def _afresh() -> None:
    """A seed, and Detectron2's warnings that are given once in a process."""
    torch.manual_seed(0)
    detectron2_logger._LOG_COUNTER.clear()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real datasets; skips where it is absent."""
    root = Path(os.getenv("DETECTRON2_DATASETS", ROOT.parent / "shared" / "datasets"))
    if not (root / "coco" / "annotations").is_dir():
        pytest.skip(f"no COCO images under {root}: set DETECTRON2_DATASETS")
    return root.resolve()


@pytest.fixture
def make_gt() -> Callable[..., Instances]:
    """Random objects of an image: ``make_gt(n, image_size=(H, W), num_classes=K)``."""

    def make(
        num_gt: int, image_size: tuple[int, int] = (96, 128), num_classes: int = 5
    ) -> Instances:
        height, width = image_size
        corners = torch.rand(num_gt, 2, 2) * torch.tensor([width, height])
        top_left, bottom_right = corners.amin(1), corners.amax(1)
        boxes = torch.cat((top_left, bottom_right + 1), dim=1)
        return Instances(
            image_size,
            gt_boxes=Boxes(boxes),
            gt_classes=torch.randint(num_classes, (num_gt,)),
        )

    return make


@pytest.fixture
def in_tritons_interpreter() -> Callable[[str], None]:
    """Runs code that can import the test files, with GPU kernels interpreted on the CPU."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")

    def run(code: str) -> None:
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            check=True,
            cwd=ROOT / "tests" / "modeling",
            env={**os.environ, "TRITON_INTERPRET": "1"},
        )

    return run


@pytest.fixture
def tiny_set(tmp_path: Path) -> list[str]:
    """Overrides that name two noisy images with a bright square each, as one class."""
    folder = tmp_path / "images"
    folder.mkdir()
    images, annotations = [], []
    for i in (1, 2):
        pixels = torch.randint(0, 80, (64, 64, 3), dtype=torch.uint8).numpy()
        pixels[8 * i : 8 * i + 24, 16:40] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        box = {"bbox": [16, 8 * i, 24, 24], "area": 576, "iscrowd": 0}
        annotations.append({"id": i, "image_id": i, "category_id": 1, **box})
    content = {"images": images, "annotations": annotations}
    path = tmp_path / "set.json"
    path.write_text(json.dumps({**content, "categories": [{"id": 1, "name": "square"}]}))
    return [
        word
        for key in ("TRAIN", "TEST")
        for word in (
            *(f"DATASETS.{key}_JSON", str(path)),
            *(f"DATASETS.{key}_IMAGE_ROOT", str(folder)),
        )
    ]
