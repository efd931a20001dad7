"""Training and runtime read a file alike: one table of modes and depths, and orientations."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onenet_runtime.images
import pytest
from onenet_runtime import ImageError as RuntimeImageError
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

import onenet.data.images
from onenet.data.images import read_image
from onenet.utils.errors import ImageError

pytestmark = pytest.mark.filterwarnings("ignore:IM image format is deprecated")

HEIGHT, WIDTH = 8, 12
RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
DEEP[0, :6] = 0, 1, 255, 256, 4095, 65535
INDICES = RNG.integers(0, 7, (HEIGHT, WIDTH), dtype=np.uint8)
PALETTE = RNG.integers(0, 256, (7, 3), dtype=np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2).astype(np.uint8)


def of_cmyk(values: np.ndarray) -> np.ndarray:
    ink, light = values[:, :, :3].astype(float), 255.0 - values[:, :, 3:]
    return np.round((255 - ink) * light / 255)


def of_ycbcr(values: np.ndarray) -> np.ndarray:
    """JPEG's (JFIF 1.02, page 3)."""
    y, cb, cr = np.moveaxis(values[:, :, :3].astype(float), 2, 0)
    cb, cr = cb - 128, cr - 128
    rgb = (y + 1.402 * cr, y - 0.34414 * cb - 0.71414 * cr, y + 1.772 * cb)
    return np.clip(np.round(np.stack(rgb, axis=2)), 0, 255)


def image_of(mode: str) -> Image.Image:
    """An image of a mode; its pixels are those of the arrays above."""
    if mode in ("I", "F"):
        return Image.fromarray(DEEP.astype({"I": np.int32, "F": np.float32}[mode]))
    if mode.startswith("I;16"):
        data = DEEP.astype(">u2" if mode.endswith("B") else "<u2")
        return Image.frombytes(mode, (WIDTH, HEIGHT), data.tobytes())
    if mode in ("P", "PA"):
        bands = [INDICES] if mode == "P" else [INDICES, COLOR[:, :, 3]]
        image = Image.frombytes(mode, (WIDTH, HEIGHT), np.stack(bands, axis=2).tobytes())
        image.putpalette(PALETTE.tobytes())
        return image
    if mode == "1":
        return Image.fromarray(COLOR[:, :, 0] > 127)
    channels = COLOR[:, :, : len(Image.new(mode, (1, 1)).getbands())]
    if mode == "RGBX":
        return Image.frombytes("RGBX", (WIDTH, HEIGHT), channels.tobytes())
    return Image.frombytes(mode, (WIDTH, HEIGHT), channels.tobytes())


EXPECTED = {  # RGB, and what a channel may differ by
    "1": (grey((COLOR[:, :, 0] > 127) * 255), 0),
    "L": (grey(COLOR[:, :, 0]), 0),
    "LA": (grey(COLOR[:, :, 0]), 0),
    "P": (PALETTE[INDICES], 0),
    "PA": (PALETTE[INDICES], 0),
    "RGB": (COLOR[:, :, :3], 0),
    "RGBA": (COLOR[:, :, :3], 0),
    "RGBX": (COLOR[:, :, :3], 0),
    "CMYK": (of_cmyk(COLOR), 1),
    "YCbCr": (of_ycbcr(COLOR), 1),
    "I;16": (grey(DEEP // 256), 0),
    "I;16B": (grey(DEEP // 256), 0),
    "I;16L": (grey(DEEP // 256), 0),
}
FILES = [
    *((mode, ".png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *((mode, ".tif") for mode in EXPECTED if mode != "I;16L"),
    *((mode, ".im") for mode in ("I;16", "I;16B", "I;16L", "YCbCr")),
    *((mode, ".ppm") for mode in ("1", "L", "RGB", "I;16", "I")),
    *((mode, ".bmp") for mode in ("1", "L", "P", "RGB")),
    *((mode, ".jp2") for mode in ("L", "LA", "RGB", "RGBA", "I;16")),
    *((mode, ".tga") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
]


def save(path: Path, image: Image.Image, **options: object) -> Path:
    try:
        image.save(path, **options)
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow cannot write {image.mode} as {path.suffix}")
    return path


def both(path: Path) -> np.ndarray:
    """What both readers read, RGB."""
    image = read_image(str(path))
    swapped = read_image(str(path), "BGR")
    for other in (swapped, onenet_runtime.read_image(path)):
        assert other.dtype == np.uint8 and other.flags.c_contiguous
        np.testing.assert_array_equal(other[:, :, ::-1] if other is swapped else other, image)
    return image


def refused(path: Path) -> tuple[str, str]:
    """What both readers say."""
    with pytest.raises(ImageError) as of_training:
        read_image(str(path))
    with pytest.raises(RuntimeImageError) as of_runtime:
        onenet_runtime.read_image(path)
    messages = str(of_training.value), str(of_runtime.value)
    for message in messages:
        assert str(path) in message and message.endswith(".") and "\n" not in message
    return messages


@pytest.mark.parametrize(("mode", "suffix"), FILES)
def test_modes_and_depths(mode: str, suffix: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"image{suffix}", image_of(mode))
    expected, tolerance = EXPECTED["I;16" if mode == "I" else mode]
    np.testing.assert_allclose(both(path).astype(float), expected, atol=tolerance, rtol=0)


def test_a_png_of_16_bits_opened_as_i(tmp_path: Path, monkeypatch) -> None:
    """As by Pillow before 10.3."""
    path = save(tmp_path / "image.png", image_of("I;16"))
    open_image = Image.open

    def open_as_i(*args: object) -> Image.Image:
        image = open_image(*args)
        name, image = image.format, image.convert("I")
        image.format = name
        return image

    monkeypatch.setattr(Image, "open", open_as_i)
    np.testing.assert_array_equal(both(path), grey(DEEP // 256))


@pytest.mark.parametrize("suffix", [".tif", ".im", ".pfm"])
@pytest.mark.parametrize(("mode", "kind"), [("I", "integers"), ("F", "floats")])
def test_32_bits_are_refused(mode: str, kind: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".pfm" and mode == "I":
        pytest.skip("the format has floats only")
    for message in refused(save(tmp_path / f"image{suffix}", image_of(mode))):
        assert f"32-bit {kind}" in message and "convert it to 8 or 16 bits" in message


def test_a_mode_that_pillow_does_not_convert_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = save(tmp_path / "image.tif", image_of("RGB").convert("LAB"))

    def fail(*_: object, **__: object) -> None:
        raise ValueError("conversion from LAB to RGB not supported")

    monkeypatch.setattr(Image.Image, "convert", fail)
    for message in refused(path):
        assert "mode LAB" in message and "convert it to 8 or 16 bits" in message


@pytest.fixture
def nothing_told(monkeypatch) -> None:
    for module in (onenet.data.images, onenet_runtime.images):
        monkeypatch.setattr(module, "_told", set())


def test_a_dark_image_of_16_bits_is_told_once(nothing_told, tmp_path: Path, caplog) -> None:
    for name, brightest in (("bright", 4096), ("dark", 4095), ("other", 100)):
        Image.fromarray(np.minimum(DEEP, brightest)).save(tmp_path / f"{name}.png")
    with caplog.at_level(logging.WARNING):
        both(tmp_path / "bright.png")
        assert not caplog.messages
        both(tmp_path / "dark.png")
        both(tmp_path / "other.png")
    assert len(caplog.messages) == 2
    for message in caplog.messages:
        assert f"{tmp_path / 'dark.png'} is nearly black: its brightest value is 4095" in message
        assert "scale such images to the full range" in message


def test_further_pages_are_told_once(nothing_told, tmp_path: Path, caplog) -> None:
    pages = [Image.fromarray(np.full((4, 6, 3), value, np.uint8)) for value in (10, 20, 30)]
    for name in ("stack", "other"):
        pages[0].save(tmp_path / f"{name}.tif", save_all=True, append_images=pages[1:])
    with caplog.at_level(logging.WARNING):
        assert (both(tmp_path / "stack.tif") == 10).all()
        both(tmp_path / "other.tif")
    assert len(caplog.messages) == 2
    for message in caplog.messages:
        assert f"{tmp_path / 'stack.tif'} has 3 pages: the first is used" in message


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
    ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
    ' xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>'
)
# EXIF 2.32, page 34: where row 0 and column 0 of the file are in the upright picture
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}
CORNERS = np.zeros((32, 48, 3), np.uint8)  # each corner has its colour, which no codec mistakes
for _row, _column, _color in ((0, 0, 0), (0, 24, 1), (16, 0, 2)):
    CORNERS[_row : _row + 16, _column : _column + 24, _color] = 255


def save_turned(path: Path, orientation: int, source: str) -> Path:
    if path.suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image, xmp = Image.fromarray(CORNERS), XMP.format(orientation)
    options: dict = {"lossless": True} if path.suffix == ".webp" else {}
    if source == "exif":
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif
    elif path.suffix == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    elif path.suffix == ".tif":
        options["tiffinfo"] = ImageFileDirectory_v2()
        options["tiffinfo"][700] = xmp.encode()
        options["tiffinfo"].tagtype[700] = 1
    else:
        options["xmp"] = xmp.encode()
    image.save(path, **options)
    return path


@pytest.mark.parametrize("source", ["exif", "xmp"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, suffix: str, source: str, tmp_path: Path) -> None:
    image = both(save_turned(tmp_path / f"image{suffix}", orientation, source))
    expected = UPRIGHT[orientation](CORNERS)
    assert image.shape == expected.shape
    np.testing.assert_array_equal(image[4::8, 4::8] > 127, expected[4::8, 4::8] > 127)


def test_a_compressed_tiff_is_turned_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "image.tif"
    Image.fromarray(CORNERS).save(path, exif=exif, compression="tiff_lzw")
    np.testing.assert_array_equal(both(path), UPRIGHT[6](CORNERS))


def test_a_turned_image_of_16_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    image_of("I;16").save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(
        both(tmp_path / "image.png"), UPRIGHT[6](grey(DEEP // 256)).copy()
    )
