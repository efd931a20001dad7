"""Reads and checks images: one rule for depths and modes, as in training (onenet/data/images.py).

* 8 bits a channel or fewer: Pillow's ``convert("RGB")``; alpha is dropped.
* 16 bits a channel: the high byte (value // 256), as Pillow reads 16-bit RGB.
* 32-bit integers and floats, and modes that Pillow does not convert: refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import ImageError, first_line, printable

__all__ = ["check_array", "read_image", "upright_pixels"]

_EXIF_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FORMATS_OF_16_BITS = {"PNG", "PPM"}  # where Pillow's mode I holds 0 to 65535
_DARK = 4096  # 12-bit values, stored in 16 bits, are below
_told: set[str] = set()  # kinds of warnings that this process has logged


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image as in training: upright by its EXIF orientation, three channels.

    See the module for depths and modes.

    Args:
        path: of a file in a format of Pillow: JPEG, PNG, BMP, WebP, TIFF and others.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: the file is missing, empty, cut off, damaged, too large or no image; or of a
            depth or mode that is refused.
    """
    name = str(path)
    with _image_errors(name), open(path, "rb") as file, Image.open(file) as image:
        if image.format == "TIFF" and image.n_frames > 1:
            pages = f"{printable(name)} has {image.n_frames} pages: the first is used"
            _warn_once("pages", pages)
        return upright_pixels(image, name)


def upright_pixels(image: Image.Image, name: str) -> np.ndarray:
    """Pixels of a Pillow image, as :func:`read_image` reads them from a file.

    Args:
        image: an opened image.
        name: what messages call it.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: the image is damaged, or of a depth or mode that is refused.
    """
    with _image_errors(name):
        image.load()  # before its orientation is read: a TIFF turns itself in this
        return np.array(_upright(_to_rgb(image, name), image))


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Turns what is raised in reading an image into an ImageError."""
    try:
        yield
        return
    except ImageError:
        raise
    except FileNotFoundError:
        reason = "does not exist: check the path"
    except IsADirectoryError:
        reason = "is a folder: name the images in it"
    except Image.DecompressionBombError:
        reason = "has more pixels than Pillow reads: make it smaller or cut it into tiles"
    except PermissionError:
        reason = "may not be read: check the file's permissions"
    except UnidentifiedImageError:
        reason = (
            "is not an image that Pillow can read, or is cut off: copy it again, or convert it to"
            " JPEG or PNG"
        )
        if os.path.isfile(name) and os.path.getsize(name) == 0:
            reason = "is empty, it has 0 bytes: copy or download it again"
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, its own: anything
        why = getattr(error, "strerror", None) or first_line(error)
        reason = f"is damaged or cut off ({why}): copy or download it again"
    raise ImageError(f"{name} {reason}.") from None


def _warn_once(kind: str, sentence: str) -> None:
    if kind not in _told:
        _told.add(kind)
        logging.getLogger(__name__).warning(f"{sentence} (told once).")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    mode, cure = image.mode, "convert it to 8 or 16 bits a channel, grey or RGB"
    if mode.startswith("I;16") or (mode == "I" and image.format in _FORMATS_OF_16_BITS):
        values = np.asarray(image)
        if values.max() < _DARK:
            _warn_once(
                "dark",
                f"The 16-bit image {printable(name)} is nearly black: its brightest value is"
                f" {values.max()} of 65535; scale such images to the full range",
            )
        return Image.fromarray((values // 256).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        kind = "integers" if mode == "I" else "floats"
        raise ImageError(f"{name} has pixels of 32-bit {kind}: {cure}.")
    try:
        return image.convert("RGB")
    except (ImportError, ValueError):  # ImportError: LAB needs a Pillow with LittleCMS
        raise ImageError(
            f"{name} has the mode {mode}, which Pillow cannot convert to RGB: {cure}."
        ) from None


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Turns pixels as the file tells; ``ImageOps.exif_transpose`` fails on damaged EXIF data."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged EXIF data are as good as none
        return pixels
    return pixels.transpose(_TURNS[orientation]) if orientation in _TURNS else pixels


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
            f"{name} is of type {type(image).__name__}: pass a path, a Pillow image, or a"
            " NumPy array (height, width, 3) of uint8."
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
            " cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)."
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
