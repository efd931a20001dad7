"""Reading and checking of images: one rule for depths and modes, as in onenet_runtime/images.py.

* 8 bits a channel or fewer: Pillow's ``convert("RGB")``, as in Detectron2; alpha is dropped.
* 16 bits a channel: the high byte (value // 256), as Pillow reads 16-bit RGB.
* 32-bit integers and floats, and modes that Pillow does not convert: refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from ..utils.errors import ImageError, printable

__all__ = ["augment", "check_array", "read_image", "read_size", "upright_pixels"]

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
_SIDEWAYS = (5, 6, 7, 8)  # of these: width and height change places
_FORMATS_OF_16_BITS = {"PNG", "PPM"}  # where Pillow's mode I holds 0 to 65535
_DARK = 4096  # 12-bit values, stored in 16 bits, are below
_told: set[str] = set()  # kinds of warnings that this process has logged


class _Refused(Exception):
    """An image of a mode or depth for which there is no rule."""


def read_image(
    path: str, format: Literal["BGR", "RGB"] = "RGB", name: str | None = None
) -> np.ndarray:
    """Reads an image file, upright by its EXIF orientation; see the module for depths and modes.

    Args:
        path: a file that Pillow can read.
        format: order of the channels.
        name: what messages call the file; None for its path.

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        ImageError: the file is missing or broken, or of a depth or mode that is refused.
    """
    name = name or path
    step = {"RGB": 1, "BGR": -1}[format]
    with _opened(path, name) as image:
        if image.format == "TIFF" and image.n_frames > 1:
            pages = f"{printable(name)} has {image.n_frames} pages: the first is used"
            _warn_once("pages", pages)
        return np.ascontiguousarray(upright_pixels(image, name)[:, :, ::step])


def upright_pixels(image: Image.Image, name: str = "in memory") -> np.ndarray:
    """Pixels of a Pillow image, as :func:`read_image` reads them from a file.

    Args:
        image: an opened image.
        name: what a warning calls it.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: the image is broken, or of a depth or mode that is refused.
    """
    with _image_errors(name):
        image.load()  # before its orientation is read: a TIFF turns itself in this
        return np.asarray(_upright(_to_rgb(image, name), image))


def read_size(path: str) -> tuple[int, int]:
    """Width and height of an image file, upright by its EXIF orientation, mostly without decoding
    it.

    Raises:
        ImageError: the file is missing, or no image.
    """
    with _opened(path, path) as image:
        if image.format == "TIFF":
            image.load()  # as in read_image
        width, height = image.size
        return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


@contextlib.contextmanager
def _opened(path: str, name: str) -> Iterator[Image.Image]:
    """Opens an image file; what is raised in reading it becomes an ImageError."""
    with _image_errors(name, path), PathManager.open(path, "rb") as file, Image.open(file) as image:
        yield image


@contextlib.contextmanager
def _image_errors(name: str, path: str = "") -> Iterator[None]:
    """Turns what is raised in reading an image into an ImageError."""
    cure = "replace it, or leave it out"
    try:
        yield
        return
    except ImageError:
        raise
    except _Refused as error:
        reason, cure = str(error), "convert it to 8 or 16 bits a channel, grey or RGB"
    except UnidentifiedImageError:  # its text names a Python object
        reason = "Pillow knows no image format like this"
        if os.path.isfile(path) and not os.path.getsize(path):
            reason = "it has 0 bytes"
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, its own: anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise ImageError(f"The image {name} cannot be read ({reason}); {cure}.")


def _warn_once(kind: str, sentence: str) -> None:
    if kind not in _told:
        _told.add(kind)
        logging.getLogger(__name__).warning(f"{sentence} (told once).")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
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
        raise _Refused(f"its pixels are 32-bit {'integers' if mode == 'I' else 'floats'}")
    try:
        return image.convert("RGB")
    except (ImportError, ValueError):  # ImportError: LAB needs a Pillow with LittleCMS
        raise _Refused(f"Pillow cannot convert its mode {mode} to RGB") from None


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Turns pixels as the orientation of the file tells."""
    orientation = _orientation(image)
    return pixels.transpose(_TURNS[orientation]) if orientation in _TURNS else pixels


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged EXIF data are as good as none
        return None


def augment(
    augmentations: T.AugmentationList, image: np.ndarray, name: str
) -> tuple[np.ndarray, T.TransformList]:
    """Augments an image.

    Args:
        augmentations: with a resize.
        image: (H, W, 3) uint8.
        name: what the message calls the image.

    Returns:
        The result (h, w, 3), and what was done.

    Raises:
        ImageError: the image is so elongated that a side would become 0, or the other too long for
            the memory.
    """
    height, width = image.shape[:2]
    for resize in augmentations.augs:
        # Told beforehand: a random crop first enlarges the whole image, and may spare the rest
        if isinstance(resize, T.ResizeShortestEdge) and (size := min(resize.short_edge_length)):
            if 0 in resize.get_output_shape(height, width, size, resize.max_size):
                raise ImageError(
                    f"{name}, of {width} x {height} pixels, is too narrow: at the network's"
                    f" {resize.max_size} pixels for the longer side, the shorter one would vanish;"
                    " crop it, or leave it out."
                )
    inputs = T.AugInput(image)
    try:
        transforms = augmentations(inputs)
    except (MemoryError, ValueError) as error:
        raise ImageError(
            f"{name}, of {width} x {height} pixels, cannot be resized for the network"
            f" ({type(error).__name__}: {error}); crop it, or leave it out."
        ) from error
    return inputs.image, transforms


def check_array(image: Any) -> None:
    """Checks an image that is not a file's.

    Args:
        image: should be (H, W, 3) uint8.

    Raises:
        ImageError: it is something else.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"The image is of type {type(image).__name__}: pass a NumPy array (height, width, 3) of"
            " uint8, RGB, such as Predictor.read makes of a file."
        )
    shape, cure = image.shape, ""
    if image.ndim == 2 or shape[2:] == (1,):
        cure = "is grey: give it three channels with numpy.dstack([image] * 3)"
    elif image.ndim == 4:
        cure = "has four dimensions: pass the images of a batch one at a time"
    elif shape[2:] == (4,):
        cure = "has four channels: drop the fourth, the alpha channel, with image[:, :, :3]"
    elif image.ndim == 3 and shape[0] == 3 != shape[2]:
        cure = "has its channels first: put them last with image.transpose(1, 2, 0)"
    elif shape[2:] != (3,):
        cure = "is none of an RGB image: pass an array (height, width, 3)"
    elif 0 in shape:
        cure = "is empty: check how it was cropped, or leave it out"
    if cure:
        raise ImageError(f"The image, an array of shape {shape}, {cure}.")
    if image.dtype != np.uint8:
        raise ImageError(
            f"The image is an array of {image.dtype}: pass uint8 from 0 to 255, for values from 0"
            " to 1 (image * 255).round().astype(numpy.uint8)."
        )
