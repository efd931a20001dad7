"""Loading of a few real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts

from ..utils.errors import ConfigError, DataError
from .images import read_image

__all__ = ["IMAGE_SUFFIXES", "load_sample_images"]

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Suffixes of files that count as images."""


def load_sample_images(
    cfg: CfgNode, folder: str | None, count: int, option: str = "--images"
) -> list[np.ndarray]:
    """Loads the first images of a folder or of the config's test set.

    Args:
        cfg: has DATASETS.TEST and INPUT.FORMAT.
        folder: of images; None for DATASETS.TEST.
        count: maximum number of images.
        option: of the command line that gives the folder, for messages.

    Returns:
        At least one image, (H, W, 3) uint8.

    Raises:
        ConfigError: the folder does not exist.
        DataError: there is no image, or one cannot be read.
    """
    files = _dataset_files(cfg) if folder is None else _folder_files(folder, option)
    if not files:
        raise DataError(
            f"Real images are needed, and {folder or 'DATASETS.TEST'} has none: name a folder of"
            f" images with {option}."
        )
    return [read_image(file, cfg.INPUT.FORMAT) for file in files[:count]]


def _folder_files(folder: str, option: str) -> list[str]:
    if not Path(folder).is_dir():
        raise ConfigError(f"{option}: there is no folder '{folder}'.")
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
