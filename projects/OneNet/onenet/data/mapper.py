"""Detectron2's dataset mapper with the paper's augmentation."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, build_augmentation, read_image

from ..utils.errors import ImageError

__all__ = ["OneNetDatasetMapper", "build_train_augmentation"]


def build_train_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Augmentations of training: Detectron2's resize and flip, after an optional crop.

    With ``INPUT.CROP.ENABLED`` and probability ``INPUT.CROP.PROB``, the shorter side is resized to
    one of ``INPUT.CROP.MIN_SIZES`` and a window of ``INPUT.CROP.TYPE`` and ``SIZE`` is cropped
    (DETR's augmentation, arXiv 2005.12872, section 4).
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
    return augmentations


class OneNetDatasetMapper(DatasetMapper):
    """Detectron2's DatasetMapper with :func:`build_train_augmentation`; names broken images."""

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
            ImageError: the image is missing, does not decode, or differs in size from its
                annotation.
        """
        try:
            return super().__call__(dataset_dict)
        except SizeMismatchError as error:
            raise ImageError(str(error)) from error
        except Exception as error:
            reason = self._why_unreadable(dataset_dict["file_name"])
            if reason is None and isinstance(error, OSError):
                reason = str(error)  # a read error that did not recur, as on a network disk
            if reason is None:
                raise  # not the image's fault
            raise ImageError(
                f"The image {dataset_dict['file_name']} cannot be read ({reason}); replace it, or"
                " remove it from the annotations."
            ) from error

    def _why_unreadable(self, file_name: str) -> str | None:
        # Pillow raises OSError, SyntaxError, ValueError, and errors of its own
        try:
            read_image(file_name, format=self.image_format)
        except Exception as error:
            return str(error) or type(error).__name__
        return None
