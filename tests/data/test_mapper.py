"""The mapper: the paper's crop, kept empty images, and a name for a broken file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from onenet.config import add_onenet_config
from onenet.data.mapper import OneNetDatasetMapper, build_train_augmentation
from onenet.utils.errors import DataError, ImageError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


@pytest.fixture
def record(tmp_path: Path) -> dict:
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[..., 0] = 200  # red: a mistaken channel order shows
    Image.fromarray(pixels).save(tmp_path / "a.png")
    annotation = {"bbox": [6, 12, 24, 24], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": 48,
        "width": 96,
        "image_id": 1,
        "annotations": [annotation],
    }


def test_resizes_image_and_boxes(cfg, record: dict) -> None:
    out = OneNetDatasetMapper(cfg, is_train=True)(record)
    assert out["image"].shape == (3, 64, 128)
    assert out["image"][:, 0, 0].tolist() == [200, 0, 0]
    assert out["instances"].gt_boxes.tensor.tolist() == [[8, 16, 40, 48]]


def test_image_without_objects_is_kept(cfg, record: dict) -> None:
    out = OneNetDatasetMapper(cfg, is_train=True)({**record, "annotations": []})
    assert len(out["instances"]) == 0


def test_zero_area_boxes_and_crowds_are_dropped(cfg, record: dict) -> None:
    flat = {**record["annotations"][0], "bbox": [6, 12, 0, 24]}
    crowd = {**record["annotations"][0], "iscrowd": 1}
    out = OneNetDatasetMapper(cfg, is_train=True)({**record, "annotations": [flat, crowd]})
    assert len(out["instances"]) == 0


def test_crop_is_the_papers(cfg) -> None:
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute_range", [384, 600]
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (512,), 853
    np.random.seed(0)
    image = np.zeros((480, 640, 3), np.uint8)
    num_cropped = 0
    for _ in range(200):
        augmentation = T.AugmentationList(build_train_augmentation(cfg))
        *first, final = augmentation(T.AugInput(image)).transforms
        assert min(final.new_h, final.new_w) == 512 or max(final.new_h, final.new_w) == 853
        if not isinstance(first[0], T.NoOpTransform):
            resize, crop = first
            assert min(resize.new_h, resize.new_w) in (400, 500, 600)
            assert 384 <= crop.w <= 600 and 384 <= crop.h <= 600
            num_cropped += 1
    assert 70 <= num_cropped <= 130  # with probability one half


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\nbroken"])
def test_broken_image_is_named(cfg, record: dict, content: bytes) -> None:
    Path(record["file_name"]).write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        OneNetDatasetMapper(cfg, is_train=True)(record)


def test_truncated_image_is_named(cfg, record: dict) -> None:
    path = Path(record["file_name"])
    noise = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        OneNetDatasetMapper(cfg, is_train=False)(record)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_flipped_bits_change_the_image_or_are_named(cfg, record: dict, suffix: str) -> None:
    """A decoder cannot tell all of them; but nothing else than an ImageError comes of any."""
    path = Path(record["file_name"]).with_suffix(f".{suffix}")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 96, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    mapper, num_named = OneNetDatasetMapper(cfg, is_train=True), 0
    for place in [*range(min(len(content), 700)), *rng.integers(len(content), size=100)]:
        flipped = content[place] ^ (1 << int(rng.integers(8)))
        path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        try:
            assert mapper({**record, "file_name": str(path)})["image"].shape == (3, 64, 128)
        except ImageError as error:
            assert path.name in str(error)
            num_named += 1
    assert num_named > 10


def test_missing_image_and_wrong_size_are_named(cfg, record: dict) -> None:
    with pytest.raises(DataError, match=r"a\.png.*\(96, 48\).*\(95, 48\)"):
        OneNetDatasetMapper(cfg, is_train=True)({**record, "width": 95})
    Path(record["file_name"]).unlink()
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        OneNetDatasetMapper(cfg, is_train=True)(record)


@pytest.mark.parametrize("error", [OSError("of the network"), KeyError("a bug")])
def test_a_first_try_that_fails(cfg, record: dict, monkeypatch, error: Exception) -> None:
    """A read that fails once is the image's; another error is not."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(DatasetMapper, "__call__", fail)
    wanted = ImageError if isinstance(error, OSError) else KeyError
    with pytest.raises(wanted, match="of the network" if wanted is ImageError else "a bug"):
        OneNetDatasetMapper(cfg, is_train=True)(record)
