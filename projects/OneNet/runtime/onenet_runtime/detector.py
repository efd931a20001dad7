"""The detector: images in, detections in the images' own pixels out.

Its face is that of ``onenet.Detector``, which runs checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from .draw import draw_boxes
from .errors import ImageError, ModelError, first_line
from .predictor import AnyImage, Found, Predictor, Provider, keep
from .stream import detect_files

__all__ = ["Detections", "Detector"]

_SMALLEST_PICTURE = 384  # pixels of height; below, labels would hide the image
_WIDEST_PICTURE = 4096  # pixels of width of an image that is enlarged


class Detector:
    """An exported OneNet.

    Attributes:
        predictor: with the network and what its file says of itself.
        class_names: names of the K classes.
        thresholds: K lowest scores of detections.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        threshold: float | None = None,
        providers: Sequence[Provider] | None = None,
    ) -> None:
        """Loads a model.

        Args:
            model: path of the ONNX file.
            threshold: lowest score of a detection, for all classes; None for the calibrated
                thresholds that the file has, or 0.3 if it has none.
            providers: execution providers of ONNX Runtime, best first; None for CUDA where this
                ONNX Runtime has it, and the CPU.

        Raises:
            ModelError: the file is missing or no exported OneNet, or a provider is not available.
            ValueError: the threshold is no number from 0 to 1.
        """
        self.predictor = Predictor(model, providers)
        self.class_names = list(self.predictor.metadata.class_names)
        self.thresholds = self.predictor.thresholds(threshold)

    @overload
    def __call__(self, images: AnyImage) -> Detections: ...

    @overload
    def __call__(self, images: list[AnyImage]) -> list[Detections]: ...

    def __call__(self, images: AnyImage | list[AnyImage]) -> Detections | list[Detections]:
        """Detects objects in an image, or in each of a list, a batch for each size.

        Args:
            images: a file's path, an array (H, W, 3) of uint8 in RGB, a Pillow image; or a list.
                Files and Pillow images are turned upright by their EXIF orientation.

        Returns:
            The detections; for a list, those of each image.

        Raises:
            ImageError: an image is missing, damaged or of the wrong kind.
            ModelError: ONNX Runtime cannot run the batch, for want of memory for instance; or a
                class has no name.
        """
        if not isinstance(images, list):
            return self._detect([self.predictor.read(images)])[0]
        read = self.predictor.read
        return self._detect([read(im, f"Image {i} of the batch") for i, im in enumerate(images)])

    def detect_files(
        self, paths: Iterable[str | os.PathLike[str]], batch: int = 1
    ) -> Iterator[Detections | ImageError]:
        """Detects objects in many files, which threads read while the network runs.

        On the CPU each core runs the network on images of its own.

        Args:
            paths: of image files.
            batch: images that the network gets at once, if so many near each other are resized to
                one size. It pays on a GPU; memory has to hold six times as many, on the CPU three
                times as many for each core.

        Yields:
            The detections of each file, in this order, or the error of one that cannot be read.

        Raises:
            ModelError: ONNX Runtime cannot run a batch.
        """
        for result in detect_files(self.predictor, paths, batch):
            if isinstance(result, ModelError):
                raise result
            if isinstance(result, ImageError):
                yield result
            else:
                image, found = result
                yield Detections(image, keep(found, self.thresholds), self.class_names)

    def _detect(self, images: list[np.ndarray]) -> list[Detections]:
        found = self.predictor(images)
        return [
            Detections(image, keep(rows, self.thresholds), self.class_names)
            for image, rows in zip(images, found, strict=True)
        ]


class Detections:
    """The objects found in an image, best first.

    Attributes:
        boxes: (n, 4) float32, left, top, right and bottom in pixels of the upright image.
        scores: (n,) float32, in (0, 1].
        class_ids: (n,) int64.
        class_names: n names.
    """

    def __init__(self, image: np.ndarray, found: Found, names: Sequence[str]) -> None:
        """
        Args:
            image: (H, W, 3) uint8, RGB.
            found: of :class:`onenet_runtime.predictor.Predictor`.
            names: of the K classes.
        """
        self._image = image
        self.boxes, self.scores, self.class_ids = found
        self.class_names = [names[i] for i in self.class_ids]

    def __len__(self) -> int:
        return len(self.class_names)

    def __repr__(self) -> str:
        return f"Detections({', '.join(self._labels())})"

    def _labels(self) -> list[str]:
        pairs = zip(self.class_names, self.scores, strict=True)
        return [f"{name} {score:.2f}" for name, score in pairs]

    def draw(self, height: int | None = None) -> np.ndarray:
        """Draws the boxes with class names and scores, the best on top.

        Args:
            height: of the picture in pixels; None for the image's, but at least 384.

        Returns:
            (height, width, 3) uint8, RGB.
        """
        if height is None:
            own, width = self._image.shape[:2]
            height = max(own, min(_SMALLEST_PICTURE, own * _WIDEST_PICTURE // width))
        return draw_boxes(self._image, self.boxes, self.class_ids, self._labels(), height)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the image with its boxes, in the format of the file's ending.

        Raises:
            OSError: the file cannot be written.
        """
        picture = Image.fromarray(self.draw())
        try:
            Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=95)
        except (OSError, ValueError) as error:  # ValueError: no such format, or too large for it
            why = getattr(error, "strerror", None) or first_line(error)
            raise OSError(
                f"{path} cannot be written ({why}): free space, choose another folder, or a format"
                " such as .png."
            ) from None

    def to_supervision(self) -> Any:
        """The detections as ``supervision.Detections``, with ``class_name`` in its data.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision needs the package supervision: pip install supervision."
            ) from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.class_ids,
            data={"class_name": np.array(self.class_names, dtype=str)},
        )
