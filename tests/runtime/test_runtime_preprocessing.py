"""The network gets the same pixels as in training, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onenet_runtime import Detector, read_image, resize_bilinear, resized_shape
from PIL import Image, PngImagePlugin

from onenet.data.images import read_image as training_read_image

DIVISOR = 32


class Recorder:
    """In place of ONNX Runtime's session: keeps the inputs, finds nothing."""

    def run(self, _: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.inputs = inputs
        n = len(inputs["images"])
        return [
            np.zeros((n, 0, 4), np.float32),
            np.zeros((n, 0), np.float32),
            np.zeros((n, 0), int),
        ]


@pytest.fixture
def check(make_model) -> Callable[..., None]:
    """``check(path, min_size, max_size)`` compares with training, in both orders of channels."""

    def compare(path: Path, min_size: int = 64, max_size: int = 100) -> None:
        for order in ("RGB", "BGR"):
            model = make_model(input_format=order, min_size=min_size, max_size=max_size)
            detector, session = Detector(model), Recorder()
            detector.predictor._session = session
            detector(path)
            inputs = T.AugInput(training_read_image(str(path), order))
            T.AugmentationList([T.ResizeShortestEdge(min_size, max_size)])(inputs)
            height, width = inputs.image.shape[:2]
            expected = np.zeros(
                (-(-height // DIVISOR) * DIVISOR, -(-width // DIVISOR) * DIVISOR, 3)
            )
            expected[:height, :width] = inputs.image
            images, sizes = (session.inputs[k] for k in ("images", "image_sizes"))
            assert images.dtype == np.uint8 and sizes.tolist() == [[height, width]]
            np.testing.assert_array_equal(images, expected[None])

    return compare


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".gif", ".tif", ".webp"])
def test_modes(mode: str, suffix: str, tmp_path: Path, make_image, check) -> None:
    path = tmp_path / f"image{suffix}"
    image = Image.fromarray(make_image())
    if mode == "I;16":
        image = Image.fromarray(make_image()[:, :, 0].astype(np.uint16) * 200)
    try:
        image.convert(mode).save(path)
    except (OSError, ValueError):
        pytest.skip("the format has no such mode")
    check(path)
    check(path, min_size=0)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(orientation: int, suffix: str, tmp_path: Path, make_image, check) -> None:
    path = tmp_path / f"image{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(make_image(40, 60)).save(path, exif=exif)
    check(path)
    if suffix == ".jpg":
        turned = 5 <= orientation <= 8
        assert read_image(path).shape == ((60, 40, 3) if turned else (40, 60, 3))


def test_damaged_exif(tmp_path: Path, make_image, check) -> None:
    path = tmp_path / "image.png"
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n2\nno hexadecimal digits")
    Image.fromarray(make_image()).save(path, pnginfo=text)
    with Image.open(path) as image, pytest.raises(ValueError):
        image.getexif()
    check(path)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animation_gives_its_first_picture(suffix: str, tmp_path: Path, check) -> None:
    path = tmp_path / f"animation{suffix}"
    first, *others = (Image.new("RGB", (20, 20), color) for color in ("red", "lime", "blue"))
    first.save(path, save_all=True, append_images=others)
    check(path)
    np.testing.assert_allclose(read_image(path)[10, 10], (255, 0, 0), atol=5)


@pytest.mark.parametrize(
    "size", [(1, 1), (7, 9), (64, 100), (61, 37), (333, 97), (900, 300), (2001, 3001)]
)
@pytest.mark.parametrize("limits", [(64, 100), (800, 1333)])
def test_sizes(size: tuple[int, int], limits: tuple[int, int], tmp_path, make_image, check) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(make_image(*size)).save(path)
    check(path, *limits)


def test_reversed_channels_and_crops() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    view = image[5:50:2, 3:70, ::-1]
    resized = resize_bilinear(view, 31, 90)
    np.testing.assert_array_equal(resized, resize_bilinear(view.copy(), 31, 90))
    np.testing.assert_array_equal(resize_bilinear(view, *view.shape[:2]), view)
    assert resized.flags.c_contiguous and resized.flags.writeable


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1500), st.integers(1, 2000))
@example(2, 5, 1, 100)  # 2.5 becomes 3
def test_shape_equals_detectron2(height: int, width: int, min_size: int, max_size: int) -> None:
    expected = T.ResizeShortestEdge.get_output_shape(height, width, min_size, max_size)
    assert resized_shape(height, width, min_size, max_size) == expected


def test_shape_of_no_resize() -> None:
    assert resized_shape(37, 4000, 0, 100) == (37, 4000)
