"""The size of an image file, read from its header."""

from __future__ import annotations

import pytest
from PIL import Image

from onenet.data.images import read_image, read_size
from onenet.utils.errors import ImageError


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_size_is_that_of_the_upright_image(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[274] = orientation
    path = str(tmp_path / f"a.{suffix}")
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    height, width, _ = read_image(path).shape
    assert read_size(path) == (width, height)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it has 0 bytes"), (b"text", "Pillow knows no image"), (None, "No such file")],
)
def test_a_file_that_is_no_image_is_named(tmp_path, content, reason):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        ImageError, match=rf"The image .*a.png cannot be read \({reason}.*; replace"
    ):
        read_size(str(path))
