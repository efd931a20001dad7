"""The mapper: the paper's crop, kept empty images, and a name for a broken file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
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


@pytest.mark.parametrize("key", ["BRIGHTNESS", "CONTRAST", "SATURATION"])
def test_color_jitter(cfg, key: str) -> None:
    cfg.INPUT.RANDOM_FLIP = "none"
    plain = len(build_train_augmentation(cfg))
    cfg.INPUT.COLOR_JITTER[key] = 0.25
    *_, jitter = augmentations = build_train_augmentation(cfg)
    assert len(augmentations) == plain + 1
    image = np.full((8, 8, 3), (120, 80, 100), np.uint8)
    image[:4] += 40
    np.random.seed(0)
    measured = []
    for _ in range(200):
        changed = T.AugmentationList([jitter])(T.AugInput(image)).apply_image(image).astype(float)
        if key == "BRIGHTNESS":
            measured.append(changed.mean() / image.mean())
        elif key == "CONTRAST":
            measured.append(np.ptp(changed.mean(axis=(1, 2))) / 40)
        else:
            measured.append(np.ptp(changed[0, 0]) / 40)
    assert 0.73 < min(measured) < 0.8 and 1.2 < max(measured) < 1.27


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


def _turned(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


SAVE = {
    "a.jpg": lambda image, path: image.save(path),
    "grey.png": lambda image, path: image.convert("L").save(path),
    "palette.gif": lambda image, path: image.convert("P").save(path),
    "alpha.png": lambda image, path: image.convert("RGBA").save(path),
    "turned.jpg": _turned,
}


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("name", SAVE)
def test_equals_detectron2s_mapper(
    cfg, record: dict, name: str, image_format: str, is_train: bool
) -> None:
    """Bit for bit, with the crop, flips and annotations, on the images that both read."""
    path = Path(record["file_name"]).with_name(name)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    SAVE[name](Image.fromarray(pixels), path)
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = image_format, "horizontal"
    cfg.INPUT.MIN_SIZE_TRAIN = (48, 64, 80)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.MIN_SIZES = True, [60, 70]
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute_range", [40, 60]
    boxes = [[6, 12, 24, 24], [50, 2, 40, 30], [0, 0, 96, 48]]
    record["annotations"] = [{**record["annotations"][0], "bbox": box} for box in boxes]
    record["annotations"][2]["iscrowd"] = 1
    record["annotations"][1]["segmentation"] = [[50, 2, 90, 2, 90, 32]]
    record["file_name"] = str(path)
    before = copy.deepcopy(record)
    ours = OneNetDatasetMapper(cfg, is_train=is_train)
    theirs = DatasetMapper(**OneNetDatasetMapper.from_config(cfg, is_train=is_train))
    for seed in range(6):
        np.random.seed(seed)
        expected = theirs(record)
        np.random.seed(seed)
        found = ours(record)
        assert found.keys() == expected.keys() and torch.equal(found["image"], expected["image"])
        if is_train:
            a, b = found.pop("instances"), expected.pop("instances")
            assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)
            assert torch.equal(a.gt_classes, b.gt_classes) and a.image_size == b.image_size
        del found["image"], expected["image"]
        assert found == expected
    assert record == before


def test_sixteen_bits_are_not_white(cfg, record: dict) -> None:
    pixels = np.full((48, 96), 100 * 256, np.uint16)
    Image.fromarray(pixels).save(record["file_name"])
    for is_train in (True, False):
        image = OneNetDatasetMapper(cfg, is_train=is_train)(record)["image"]
        assert image.dtype == torch.uint8 and bool((image == 100).all())


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000)])
@pytest.mark.parametrize("crops", [False, True])
def test_a_narrow_image_is_named(cfg, record: dict, crops: bool, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(record["file_name"])
    cfg.INPUT.CROP.ENABLED = crops
    wide, high = size
    for is_train in (True, False):
        mapper = OneNetDatasetMapper(cfg, is_train=is_train)
        with pytest.raises(ImageError, match=rf"a\.png, of {wide} x {high} pixels, is too narrow"):
            mapper({**record, "width": wide, "height": high})


@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("height must be > 0")])
def test_an_image_that_cannot_be_resized_is_named(cfg, record: dict, monkeypatch, error) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(T.ResizeTransform, "apply_image", fail)
    with pytest.raises(
        ImageError, match=r"a\.png, of 96 x 48 pixels, cannot be resized .*(0|room)"
    ):
        OneNetDatasetMapper(cfg, is_train=True)(record)


@pytest.mark.parametrize("error", [OSError("of the network"), KeyError("a bug")])
def test_errors_that_are_the_images_and_others(
    cfg, record: dict, monkeypatch, error: Exception
) -> None:
    """A read that fails is the image's; an error elsewhere is not."""

    def fail(*_: object, **__: object) -> None:
        raise error

    if isinstance(error, OSError):
        monkeypatch.setattr(Image, "open", fail)
    else:
        monkeypatch.setattr(T.AugmentationList, "__call__", fail)
    wanted = ImageError if isinstance(error, OSError) else KeyError
    with pytest.raises(wanted, match="of the network" if wanted is ImageError else "a bug"):
        OneNetDatasetMapper(cfg, is_train=True)(record)
