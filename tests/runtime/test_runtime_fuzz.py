"""Whatever bytes a file has, the runtime reads an image or raises ImageError.

The test is also a target of tests/reliability/fuzz.py, which runs it for as long as is asked for.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onenet_runtime import ImageError, read_image
from PIL import Image


def _seeds() -> list[bytes]:
    """A small image in each format, of several kinds where a format has them."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    color = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = 6
    kinds = [
        ("JPEG", color, {"exif": exif}),
        ("JPEG", color, {"progressive": True}),
        ("JPEG", color.convert("CMYK"), {}),
        ("PNG", color, {}),
        ("PNG", color.convert("P"), {}),
        ("PNG", color.convert("RGBA"), {}),
        ("PNG", Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 200), {}),
        ("BMP", color, {}),
        ("BMP", color.convert("P"), {}),
        ("GIF", color, {"save_all": True, "append_images": [color.rotate(180)]}),
        ("TIFF", color, {}),
        ("TIFF", color, {"compression": "tiff_lzw"}),
        ("TIFF", color.convert("L"), {"compression": "packbits"}),
        ("WEBP", color, {}),
        ("WEBP", color, {"lossless": True, "save_all": True, "append_images": [color]}),
        ("PPM", color, {}),
    ]
    seeds = []
    for name, image, options in kinds:
        file = io.BytesIO()
        image.save(file, name, **options)
        seeds.append(file.getvalue())
    return seeds


SEEDS = _seeds()


@st.composite
def files(draw) -> bytes:
    """Any bytes, or those of an image with some changed, cut out, doubled or cut off."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=64))
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(data)))
        end = min(start + draw(st.integers(0, 16)), len(data))
        piece = draw(st.one_of(st.binary(max_size=4), st.just(bytes(data[start:end]) * 2)))
        data[start:end] = piece
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged files
@settings(
    max_examples=400,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(files())
def test_image_files(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(data)
        file.flush()
        try:
            image = read_image(file.name)
        except ImageError as error:
            text = str(error)
            assert Path(file.name).name in text and text.endswith(".") and "\n" not in text
            return
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


def test_the_seeds_are_images(tmp_path: Path) -> None:
    """Else the test above would only show that damaged files are refused."""
    for data in SEEDS:
        path = tmp_path / "image"
        path.write_bytes(data)
        assert set(read_image(path).shape[:2]) == {9, 12}
