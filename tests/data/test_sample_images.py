"""Real images to try a detector on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from onenet.data.sample_images import load_sample_images
from onenet.utils.errors import ConfigError, DataError


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TEST = ()
    return cfg


def test_takes_the_first_images_of_a_folder(cfg: CfgNode, tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(np.full((4, 5, 3), (i, 0, 9), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / ".DS_Store").write_text("no image")
    images = load_sample_images(cfg, str(tmp_path), 2)
    assert [tuple(image[0, 0]) for image in images] == [(0, 0, 9), (1, 0, 9)]
    assert len(load_sample_images(cfg, str(tmp_path), 9)) == 3


def test_says_what_is_wrong(cfg: CfgNode, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        load_sample_images(cfg, str(tmp_path / "nowhere"), 1)
    with pytest.raises(DataError, match="has none"):
        load_sample_images(cfg, str(tmp_path), 1)
    with pytest.raises(DataError, match="DATASETS.TEST has none"):
        load_sample_images(cfg, None, 1)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="broken.png cannot be read"):
        load_sample_images(cfg, str(tmp_path), 1)
