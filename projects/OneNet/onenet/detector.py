"""A trained detector in two lines, from nothing but its checkpoint.

found = Detector("output/photos/model_best.pth")("photo.jpg")
print(found.boxes, found.scores, found.class_names)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances
from PIL import Image

from .data.images import upright_pixels
from .predictor import Predictor, keep, load_predictor_config
from .utils.errors import ConfigError
from .utils.visualizer import draw_detections, enlarged_height

__all__ = ["Detections", "Detector"]

_SMALLEST_PICTURE = 384  # pixels of height; below, labels would hide the image

AnyImage = str | os.PathLike[str] | np.ndarray | Image.Image


class Detector:
    """Detects objects in images.

    Attributes:
        predictor: with the model, its class names, and a note on the calibrated thresholds.
        class_names: names of the K classes.
        thresholds: K lowest scores of detections.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] = "",
        *,
        threshold: float | None = None,
        config_file: str | os.PathLike[str] = "",
        opts: Sequence[str] = (),
    ) -> None:
        """
        Args:
            weights: a checkpoint of a training; "" for MODEL.WEIGHTS of ``config_file``.
            threshold: lowest score of a detection, for all classes; None for the thresholds that
                an evaluation of these weights left beside them, or 0.3 if there are none.
            config_file: of the training; "" for the config in the checkpoint, or for the
                ``config.yaml`` beside it.
            opts: config overrides, ``["KEY", "value", ...]``.

        Raises:
            ConfigError: the checkpoint is missing, has no config, or does not fit it; or the
                threshold is no number from 0 to 1.
        """
        weights, config_file = os.fspath(weights), os.fspath(config_file)
        if not weights and not config_file:
            raise ConfigError("Name a checkpoint with --weights.")
        cfg = load_predictor_config(config_file or weights, opts, with_data=bool(config_file))
        self.predictor = Predictor(cfg, weights)
        self.class_names = self.predictor.class_names
        self.thresholds = self.predictor.thresholds(threshold)

    def __call__(self, images: AnyImage | list[AnyImage]) -> Detections | list[Detections]:
        """Detects objects in an image, or in each of a list.

        Args:
            images: a file's path, an array (H, W, 3) of uint8 in RGB, a Pillow image; or a list.

        Returns:
            The detections; for a list, those of each image.

        Raises:
            ImageError: an image cannot be read, or is none of these.
        """
        if isinstance(images, list):
            return [self(image) for image in images]
        image = self._pixels(images)
        shown = keep(self.predictor(image), self.thresholds)
        return Detections(image, shown, self.class_names)

    def _pixels(self, image: AnyImage) -> Any:
        if isinstance(image, (str, os.PathLike)):
            return self.predictor.read(os.fspath(image))
        return upright_pixels(image) if isinstance(image, Image.Image) else image


class Detections:
    """The objects found in an image, best first.

    Attributes:
        boxes: (n, 4) float32, left, top, right and bottom in pixels of the upright image.
        scores: (n,) float32, in [0, 1].
        class_ids: (n,) int64.
        class_names: n names.
    """

    def __init__(self, image: np.ndarray, instances: Instances, names: list[str]) -> None:
        """
        Args:
            image: (H, W, 3) uint8, RGB.
            instances: of :class:`onenet.predictor.Predictor`.
            names: of the K classes.
        """
        self._image, self._instances, self._names = image, instances, names
        self.boxes = instances.pred_boxes.tensor.numpy()
        self.scores = instances.scores.numpy()
        self.class_ids = instances.pred_classes.numpy()
        self.class_names = [names[i] for i in self.class_ids]

    def __len__(self) -> int:
        return len(self.class_names)

    def __repr__(self) -> str:
        found = (f"{n} {s:.2f}" for n, s in zip(self.class_names, self.scores, strict=True))
        return f"Detections({', '.join(found)})"

    def draw(self, height: int | None = None) -> np.ndarray:
        """Draws the boxes with class names and scores.

        Args:
            height: of the picture in pixels; None for the image's, but at least 384.

        Returns:
            (height, width, 3) uint8, RGB.

        Raises:
            ConfigError: OpenCV is not installed.
        """
        height = height or enlarged_height(self._image, _SMALLEST_PICTURE)
        return draw_detections(self._image, self._instances, self._names, height)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the image with its boxes, in the format of the file's ending.

        Raises:
            ConfigError: the file cannot be written, or OpenCV is not installed.
        """
        picture = Image.fromarray(self.draw())
        try:
            Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=95)
        except (OSError, ValueError) as error:  # ValueError: of an unknown ending
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"Cannot write the picture {path} ({reason}); choose another folder, or a format"
                " such as .png."
            ) from error

    def to_supervision(self) -> Any:
        """The detections as ``supervision.Detections``, with ``class_name`` in its data.

        Raises:
            ConfigError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ConfigError(
                "to_supervision needs the package supervision: pip install supervision."
            ) from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.class_ids,
            data={"class_name": np.array(self.class_names, dtype=str)},
        )
