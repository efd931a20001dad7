"""Bad images give one clear sentence."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from onenet_runtime import Detector, ImageError, read_image
from PIL import Image

from onenet.data.images import read_image as training_read_image
from onenet.utils.errors import ImageError as TrainingImageError


def message(function, *args) -> str:
    with pytest.raises(ImageError) as caught:
        function(*args)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    return text


def test_missing_and_folder(tmp_path: Path) -> None:
    assert "nothing.jpg does not exist" in message(read_image, tmp_path / "nothing.jpg")
    assert f"{tmp_path} is a folder" in message(read_image, str(tmp_path))


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.write_bytes(b"")
    assert "empty.jpg is empty, it has 0 bytes" in message(read_image, path)


def test_text_called_jpg(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("<html>404 not found</html>")
    assert "text.jpg is not an image" in message(read_image, path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_cut_off(suffix: str, part: float, tmp_path: Path, make_image) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(make_image(200, 300)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert "cut off" in message(read_image, path)
    with pytest.raises(TrainingImageError, match=path.name):
        training_read_image(str(path))


def test_too_many_pixels(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    path = tmp_path / "huge.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )
    assert "huge.png has more pixels than Pillow reads" in message(read_image, path)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros((40, 60), np.uint8), "cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)"),
        (np.zeros((40, 60, 1), np.uint8), "cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)"),
        (np.zeros((40, 60, 4), np.uint8), "image[:, :, :3]"),
        (np.zeros((3, 40, 60), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((2, 40, 60, 3), np.uint8), "as a list of images"),
        (np.zeros((40,), np.uint8), "(height, width, 3)"),
        (np.zeros((0, 60, 3), np.uint8), "is empty"),
        (np.zeros((40, 0, 3), np.uint8), "is empty"),
        (np.zeros((40, 60, 3), np.float32), "pass uint8"),
        (np.zeros((40, 60, 3), np.uint16), "array of uint16"),
        (None, "is None"),
        (b"\xff\xd8\xff", "is of type bytes: pass a path, a Pillow image, or a NumPy array"),
        (bytearray(9), "is of type bytearray"),
        ((), "is of type tuple"),
        (Image.new("F", (60, 40)), "has pixels of 32-bit floats"),
    ],
)
def test_bad_arrays(image, expected: str, make_model, make_image) -> None:
    detector = Detector(make_model())
    text = message(detector, image)
    assert text.startswith("The image ") and expected in text
    text = message(detector, [make_image(), image])
    assert text.startswith("Image 1 of the batch ") and expected in text


def test_too_narrow(tmp_path: Path, make_model) -> None:
    detector = Detector(make_model(min_size=64, max_size=100))
    assert detector(np.zeros((1, 200, 3), np.uint8)).boxes.shape[1] == 4  # half a pixel is one
    panorama = np.zeros((1, 201, 3), np.uint8)
    assert "of 201 x 1 pixels, is too narrow" in message(detector, panorama)
    path = tmp_path / "panorama.png"
    cv2.imwrite(str(path), panorama)
    assert message(detector, path).startswith(str(path))
