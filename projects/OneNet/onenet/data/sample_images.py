"""A few real images to try a detector on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.detection_utils import read_image

from ..utils.errors import ConfigError, DataError

__all__ = ["IMAGE_SUFFIXES", "load_sample_images"]

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Of the files in a folder that are taken for images."""


def load_sample_images(cfg: CfgNode, folder: str | None, count: int) -> list[np.ndarray]:
    """The first images of a folder or of a config's test set.

    Args:
        cfg: whose DATASETS.TEST and INPUT.FORMAT are taken.
        folder: with images, in place of DATASETS.TEST; None for the latter.
        count: how many; there may be fewer.

    Returns:
        (H, W, 3) uint8 each, at least one.

    Raises:
        ConfigError: there is no such folder.
        DataError: there is no image, or one cannot be read.
    """
    files = _dataset_files(cfg) if folder is None else _folder_files(folder)
    if not files:
        raise DataError(
            f"Real images are needed, and {folder or 'DATASETS.TEST'} has none: name a folder of"
            " images with --images."
        )
    images = []
    for file in files[:count]:
        try:
            images.append(read_image(file, format=cfg.INPUT.FORMAT))
        except Exception as error:  # Pillow raises anything
            raise DataError(f"The image {file} cannot be read ({error}).") from error
    return images


def _folder_files(folder: str) -> list[str]:
    if not Path(folder).is_dir():
        raise ConfigError(f"--images: there is no folder '{folder}'.")
    found = sorted(Path(folder).iterdir())
    return [str(path) for path in found if path.suffix.lower() in IMAGE_SUFFIXES]


def _dataset_files(cfg: CfgNode) -> list[str]:
    if not cfg.DATASETS.TEST:
        return []
    try:
        records = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    except (FileNotFoundError, DataError) as error:
        raise DataError(
            f"Real images are needed, but the test set is not there ({error}): name a folder of"
            " images with --images, or the datasets' folder in the environment variable"
            " DETECTRON2_DATASETS."
        ) from error
    return [record["file_name"] for record in records]
