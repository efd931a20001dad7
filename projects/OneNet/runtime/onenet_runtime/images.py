"""Reads and checks images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .errors import ImageError, first_line

__all__ = ["check_array", "is_utf8", "read_image"]


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image as Detectron2 does: upright (EXIF orientation applied), three channels.

    Args:
        path: of a file in a format of OpenCV: JPEG, PNG, BMP, WebP, TIFF and others.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ImageError: the file is missing, empty, cut off, damaged, too large or no image.
    """
    data = _read_bytes(path)
    if data[:3] == b"\xff\xd8\xff" and _lacks_end(data):
        raise ImageError(
            f"{path} is cut off, its end of image is missing: copy or download it again."
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise ImageError(
                f"{path} has more pixels than OpenCV reads: make it smaller or cut it into tiles,"
                " or raise the environment variable OPENCV_IO_MAX_IMAGE_PIXELS."
            ) from None
        raise ImageError(
            f"{path} cannot be decoded by OpenCV ({first_line(error)}): save it again as JPEG or"
            " PNG."
        ) from None
    if image is not None:
        return image
    if is_utf8(path) and cv2.haveImageReader(str(path)):
        raise ImageError(f"{path} is damaged or cut off: copy or download it again.")
    raise ImageError(
        f"{path} is not an image that OpenCV can read, whatever its name says:"
        " convert it to JPEG or PNG."
    )


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether OpenCV may be given the name: any other one ends the process in OpenCV 5."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist: check the path.") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder: name the images in it.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{path} cannot be read ({reason}): check the path and the file's permissions."
        ) from None
    if not data:
        raise ImageError(f"{path} is empty, it has 0 bytes: copy or download it again.")
    return data


def _lacks_end(jpeg: bytes) -> bool:
    """Whether a JPEG has no end-of-image marker, where OpenCV 4 would fill up with grey.

    The segments ahead of the pixels are skipped: a thumbnail in one has an end of its own. Within
    the pixels' data the marker's bytes do not occur.
    """
    position = _skip_fill(jpeg, 2)
    while jpeg[position : position + 1] == b"\xff" and jpeg[position + 1 : position + 2] != b"\xda":
        length = int.from_bytes(jpeg[position + 2 : position + 4], "big")
        position = _skip_fill(jpeg, position + 2 + length)
    return jpeg.find(b"\xff\xd9", position) < 0


def _skip_fill(jpeg: bytes, position: int) -> int:
    """Where a marker begins, behind the bytes 0xFF that may fill up the space ahead of it."""
    while jpeg[position : position + 2] == b"\xff\xff":
        position += 1
    return position


def check_array(image: Any, name: str) -> np.ndarray:
    """Checks an image that is an array.

    Args:
        image: should be (H, W, 3) uint8.
        name: what messages call it.

    Returns:
        The image.

    Raises:
        ImageError: it is something else.
    """
    if image is None:
        raise ImageError(
            f"{name} is None, as cv2.imread returns for a file that it cannot read:"
            " pass the path instead, and the message will tell why."
        )
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"{name} is of type {type(image).__name__}: pass a path, or a NumPy array (height,"
            " width, 3) of uint8."
        )
    _check_shape(image.shape, name)
    if image.dtype != np.uint8:
        raise ImageError(
            f"{name} is an array of {image.dtype}: pass uint8 from 0 to 255, for values from 0 to 1"
            " (image * 255).round().astype(numpy.uint8)."
        )
    return image


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        raise ImageError(
            f"{name} is grey, of shape {shape}: give it three channels with"
            " cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)."
        )
    if len(shape) == 3 and shape[2] == 4:
        raise ImageError(
            f"{name} has four channels, of shape {shape}: drop the fourth, the alpha channel, with"
            " image[:, :, :3]."
        )
    if len(shape) == 4:
        raise ImageError(
            f"{name} has four dimensions, of shape {shape}: pass a batch as a list of images."
        )
    if len(shape) != 3 or shape[2] != 3:
        cure = "pass an array (height, width, 3)"
        if len(shape) == 3 and shape[0] == 3:
            cure = "put the channels last with image.transpose(1, 2, 0)"
        raise ImageError(f"{name} is an array of shape {shape}: {cure}.")
    if 0 in shape:
        raise ImageError(
            f"{name} is empty, of shape {shape}: check how it was cropped, or leave it out."
        )
