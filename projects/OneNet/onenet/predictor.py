"""A trained detector for images, with its class names and score thresholds.

cfg = load_predictor_config("configs/digits/onenet_fcos_R18_FPN.yaml")
predictor = Predictor(cfg, "output/digits/model_final.pth")
detections = predictor(predictor.read("image.jpg"))  # Instances, best first
detections = keep(detections, predictor.thresholds())
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from .checkpoint import load_weights
from .config.defaults import JSON_KEYS
from .data.images import augment, check_array, read_image
from .engine import load_config
from .engine.class_names import dataset_class_names, trained_class_names
from .evaluation.thresholds import (
    DEFAULT_THRESHOLD,
    find_thresholds,
    load_thresholds,
    read_thresholds,
    weights_digest,
)
from .modeling.backbone.features import without_pretrained
from .modeling.meta_arch import OneNet
from .utils.errors import ConfigError, DataError

__all__ = ["Predictor", "keep", "load_predictor_config"]

# Overrides of training and evaluation settings that do not matter for prediction
_WITHOUT_TRAINING = "SOLVER.AMP.ENABLED False SOLVER.PATIENCE 0 TEST.LIMITS []".split()
_WITHOUT_DATA = [
    *("DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "DATASETS.FOLDER", ""),
    *(word for key in JSON_KEYS for word in (f"DATASETS.{key}", "")),
]


def load_predictor_config(
    config_file: str, opts: Sequence[str] = (), with_data: bool = True
) -> CfgNode:
    """Loads a detector's config; its datasets may be absent.

    Args:
        config_file: path of the training's yaml file, of the ``config.yaml`` that it wrote, or of a
            checkpoint (:func:`onenet.engine.load_config`).
        opts: overrides, ``["KEY", "value", ...]``.
        with_data: whether to load the datasets if they are there.

    Returns:
        The frozen config, without datasets if one of them is absent.

    Raises:
        ConfigError: the file, a key or a value is wrong; or neither the config nor a dataset gives
            the number of classes.
    """
    # Try the test set, then both sets, then no data. An error that is not about data is raised by
    # the last attempt too.
    if with_data:
        with contextlib.suppress(ConfigError, DataError):
            return load_config(config_file, list(opts), eval_only=True)
        with contextlib.suppress(ConfigError, DataError):
            return load_config(config_file, [*opts, *_WITHOUT_TRAINING])
    return load_config(config_file, [*opts, *_WITHOUT_TRAINING, *_WITHOUT_DATA])


def keep(detections: Instances, thresholds: Sequence[float]) -> Instances:
    """Keeps the detections whose score is at least the threshold of their class.

    Args:
        detections: with ``scores`` and ``pred_classes``, on the CPU.
        thresholds: one for each of the K classes.
    """
    limits = torch.tensor(thresholds, dtype=torch.float32)
    return detections[detections.scores >= limits[detections.pred_classes]]


class Predictor:
    """Runs a trained detector on images of any size, as in evaluation.

    Attributes:
        model: OneNet, RetinaNet or FCOS, in evaluation mode.
        class_names: names of the K classes, from the checkpoint or its run, else from the config's
            dataset, else from the ``thresholds.json`` beside the weights, else "0", "1", ...
        calibrated: K score thresholds of best F1, if an evaluation of exactly these weights stored
            them beside the checkpoint (:mod:`onenet.evaluation.thresholds`); else None.
        calibration_note: a sentence on the source of ``calibrated``, or on why it is None.
    """

    def __init__(self, cfg: CfgNode, weights: str = "") -> None:
        """
        Args:
            cfg: from :func:`load_predictor_config` or :func:`onenet.engine.load_config`.
            weights: path of a checkpoint; "" for MODEL.WEIGHTS.

        Raises:
            ConfigError: the weights are missing or do not fit the model.
        """
        weights = weights or cfg.MODEL.WEIGHTS
        if not weights:
            raise ConfigError("Name a checkpoint with --weights, or as MODEL.WEIGHTS.")
        self.model = build_model(without_pretrained(cfg)).eval()
        names = trained_class_names(cfg, weights, load_weights(self.model, weights))
        self._is_bgr = cfg.INPUT.FORMAT == "BGR"
        self._augmentations = T.AugmentationList(build_augmentation(cfg, is_train=False))
        names = names or dataset_class_names([*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN])
        found = _calibration(weights, names, self.model)
        names, self.calibrated, self.calibration_note = found
        # Detectron2's detectors have the attribute themselves
        detector = self.model.head if isinstance(self.model, OneNet) else self.model
        self.class_names = names or [str(i) for i in range(detector.num_classes)]

    def thresholds(self, threshold: float | None = None) -> list[float]:
        """K thresholds for :func:`keep`.

        Args:
            threshold: for all classes; None for the calibrated ones, or 0.3 if there are none.

        Raises:
            ConfigError: it is no number from 0 to 1.
        """
        if threshold is None and self.calibrated is not None:
            return self.calibrated
        value = DEFAULT_THRESHOLD if threshold is None else threshold
        if isinstance(value, str) or not 0 <= value <= 1:
            raise ConfigError(f"The threshold is {value!r}; give a number from 0 to 1.")
        return [value] * len(self.class_names)

    def read(self, path: str) -> np.ndarray:
        """Reads an image file as in training, rotated by its EXIF orientation.

        Args:
            path: a file that Pillow can read.

        Returns:
            (H, W, 3) uint8, RGB.

        Raises:
            ImageError: the file is missing or broken. The message has the file's name without its
                folder, which may be an upload's temporary one.
        """
        return read_image(path, name=os.path.basename(path))

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Detects objects in an image, resized to the config's test size.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            All detections, best first, on the CPU: ``pred_boxes`` in pixels of the given image,
            ``scores``, ``pred_classes``.

        Raises:
            ImageError: the image is no such array, or so elongated that resizing would make a side
                0.
        """
        check_array(image)
        height, width = image.shape[:2]
        image = image[:, :, ::-1] if self._is_bgr else image
        image, _ = augment(self._augmentations, image, "The image")
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        output = self.model([{"image": pixels, "height": height, "width": width}])[0]
        return output["instances"].to("cpu")


def _calibration(
    weights: str, class_names: list[str] | None, model: nn.Module
) -> tuple[list[str] | None, list[float] | None, str]:
    """Class names (by default the file's), thresholds beside the weights, and a note on them."""
    path = find_thresholds(weights)
    if path is None:
        note = "No calibrated thresholds lie beside the weights; an evaluation of them"
        return class_names, None, f"{note} (train_net.py --eval-only) makes some."
    try:
        names = class_names or [entry["name"] for entry in read_thresholds(path)["classes"]]
        thresholds = load_thresholds(path, names, weights_digest(model))
    except (ConfigError, DataError) as error:
        return class_names, None, f"No calibrated thresholds: {error}"
    return names, thresholds, f"Calibrated thresholds, one a class, from {path}."
