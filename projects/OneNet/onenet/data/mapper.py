"""Detectron2's dataset mapper with the paper's augmentation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    SizeMismatchError,
    build_augmentation,
    check_image_size,
)

from ..utils.errors import ImageError
from .images import augment, read_image

__all__ = ["OneNetDatasetMapper", "build_train_augmentation"]


def build_train_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Augmentations of training: Detectron2's resize and flip, an optional crop before them.

    With ``INPUT.CROP.ENABLED`` and probability ``INPUT.CROP.PROB``, the shorter side is resized to
    one of ``INPUT.CROP.MIN_SIZES`` and a window of ``INPUT.CROP.TYPE`` and ``SIZE`` is cropped
    (DETR's augmentation, arXiv 2005.12872, section 4). ``INPUT.COLOR_JITTER`` comes last.
    """
    augmentations = build_augmentation(cfg, is_train=True)
    crop = cfg.INPUT.CROP
    if crop.ENABLED:
        resize_and_crop = T.AugmentationList(
            [
                T.ResizeShortestEdge(list(crop.MIN_SIZES), sample_style="choice"),
                T.RandomCrop(crop.TYPE, crop.SIZE),
            ]
        )
        augmentations.insert(0, T.RandomApply(resize_and_crop, prob=crop.PROB))
    jitter = cfg.INPUT.COLOR_JITTER
    for augmentation, strength in (
        (T.RandomBrightness, jitter.BRIGHTNESS),
        (T.RandomContrast, jitter.CONTRAST),
        (T.RandomSaturation, jitter.SATURATION),
    ):
        if strength:
            augmentations.append(augmentation(1 - strength, 1 + strength))
    return augmentations


class OneNetDatasetMapper(DatasetMapper):
    """Detectron2's DatasetMapper with :func:`build_train_augmentation` and :func:`read_image`."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Reads ``cfg.INPUT``."""
        if is_train:
            augmentations = build_train_augmentation(cfg)
        else:
            augmentations = build_augmentation(cfg, is_train=False)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """See :class:`detectron2.data.DatasetMapper`.

        Raises:
            ImageError: the image is missing, does not decode, is too elongated, or differs in size
                from its annotation.
        """
        sample = copy.deepcopy(dataset_dict)
        path = sample["file_name"]
        image = read_image(path, self.image_format)
        try:
            check_image_size(sample, image)
        except SizeMismatchError as error:
            raise ImageError(str(error)) from error
        image, transforms = augment(self.augmentations, image, f"The image {path}")
        sample["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if not self.is_train:
            sample.pop("annotations", None)
        elif "annotations" in sample:
            self._transform_annotations(sample, transforms, image.shape[:2])
        return sample
