"""The exported network: upright images in, all that it finds out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnxruntime
from PIL import Image

from .errors import ImageError, ModelError, first_line
from .images import check_array, read_image, upright_pixels
from .metadata import ModelMetadata
from .resize import resize_bilinear, resized_shape

__all__ = ["AnyImage", "Found", "Predictor", "Provider", "keep"]

AnyImage: TypeAlias = str | os.PathLike[str] | np.ndarray | Image.Image
Provider: TypeAlias = str | tuple[str, dict[str, Any]]

DEFAULT_THRESHOLD = 0.3
_INPUTS = {"images", "image_sizes"}
_OUTPUTS = ["boxes", "scores", "classes"]
_TORCH_SUFFIXES = {".pt", ".pt2", ".pth", ".ts"}


class Found(NamedTuple):
    """What the network finds in one image, best first.

    Attributes:
        boxes: (n, 4) float32, left, top, right and bottom in pixels of the image.
        scores: (n,) float32 in (0, 1].
        class_ids: (n,) int64.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray


def keep(found: Found, thresholds: Sequence[float]) -> Found:
    """Keeps the detections whose score is at least the threshold of their class.

    Args:
        found: of one image.
        thresholds: one for each of the K classes.
    """
    kept = found.scores >= np.asarray(thresholds, dtype=np.float32)[found.class_ids]
    return Found(*(rows[kept] for rows in found))


class Predictor:
    """An exported OneNet on ONNX Runtime.

    Attributes:
        metadata: what the file says of itself, the class names among it.
        providers: ONNX Runtime's execution providers in use, the first is the main one.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        providers: Sequence[Provider] | None = None,
        threads: int = 0,
    ) -> None:
        """Loads a model; see :class:`onenet_runtime.Detector`.

        Args:
            model: path of the ONNX file.
            providers: see there.
            threads: of the network on the CPU; 0 for one on each core.
        """
        # For processes in other folders
        self._arguments = (os.path.abspath(model), providers, threads)
        self._path = str(model)
        self._session = _load(self._path, providers, threads)
        self.metadata = ModelMetadata.parse(
            self._session.get_modelmeta().custom_metadata_map, self._path
        )
        _check_signature(self._session, self._path)
        self.providers: list[str] = self._session.get_providers()

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, so for other processes: loads the model from its file there."""
        return type(self), self._arguments

    def with_one_thread(self) -> Predictor:
        """The same model, loaded anew, for several images at a time on the cores of a CPU."""
        model, providers, _ = self._arguments
        return type(self)(model, providers, threads=1)

    def thresholds(self, threshold: float | None = None) -> list[float]:
        """K thresholds for :func:`keep`.

        Args:
            threshold: for all classes; None for the file's calibrated ones, or 0.3 if it has none.

        Raises:
            ValueError: it is no number from 0 to 1.
        """
        if threshold is None and self.metadata.thresholds is not None:
            return list(self.metadata.thresholds)
        value = DEFAULT_THRESHOLD if threshold is None else threshold
        if isinstance(value, str) or not 0 <= value <= 1:
            raise ValueError(f"The threshold is {value!r}: give a number from 0 to 1.")
        return [value] * len(self.metadata.class_names)

    def read(self, image: AnyImage, name: str = "The image") -> np.ndarray:
        """Pixels of an image in any form, checked.

        Args:
            image: a file's path, an array (H, W, 3) of uint8 in RGB, or a Pillow image.
            name: what messages call one that is no file.

        Returns:
            (H, W, 3) uint8, RGB, upright by its EXIF orientation.

        Raises:
            ImageError: it cannot be read, or is none of these.
        """
        if isinstance(image, (str, os.PathLike)):
            name, image = str(image), read_image(image)
        elif isinstance(image, Image.Image):
            image = upright_pixels(image, name)
        self.check(image, name)
        return image

    def check(self, image: np.ndarray, name: str) -> None:
        """Raises ImageError, in which the image is called ``name``, unless it can be detected on.

        Args:
            image: should be (H, W, 3) uint8.
            name: the image's, for the message.
        """
        height, width = check_array(image, name).shape[:2]
        if 0 in self.resized_shape(height, width):
            raise ImageError(
                f"{name}, of {width} x {height} pixels, is too narrow: at the network's"
                f" {self.metadata.max_size} pixels for the longer side, the shorter one would"
                " vanish; crop it or cut it into tiles."
            )

    def __call__(self, images: Sequence[np.ndarray]) -> list[Found]:
        """Detects on images, whatever the score.

        Those that have one size after the resize run as one batch: padding them to a common size
        would change their scores, since the network's norms see it.

        Args:
            images: of :meth:`read`.

        Raises:
            ModelError: ONNX Runtime cannot run the batch, for want of memory for instance; or a
                class has no name.
        """
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(self.resized_shape(*image.shape[:2]), []).append(index)
        found: dict[int, Found] = {}
        for shape, indices in by_size.items():
            batch = self._detect_batch([images[i] for i in indices], *shape)
            found.update(zip(indices, batch, strict=True))
        return [found[i] for i in range(len(images))]

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image gets for the network, in pixels."""
        return resized_shape(height, width, self.metadata.min_size, self.metadata.max_size)

    def _detect_batch(self, images: list[np.ndarray], height: int, width: int) -> list[Found]:
        """All detections of images that are resized to one size."""
        sizes = np.array([(height, width)] * len(images), dtype=np.int64)
        batch = _pad(
            [resize_bilinear(self._in_order(image), height, width) for image in images],
            self.metadata.size_divisibility,
        )
        try:
            boxes, scores, classes = self._session.run(
                _OUTPUTS, {"images": batch, "image_sizes": sizes}
            )
        except Exception as error:  # ONNX Runtime's own have no other common class
            raise ModelError(
                f"ONNX Runtime cannot run {self._path} on a batch of shape {batch.shape}"
                f" ({first_line(error)}): try a smaller batch, or another provider."
            ) from error
        self._check_outputs(boxes, scores, classes, len(images))
        return [
            self._to_found(boxes[i], scores[i], classes[i], (height, width), image)
            for i, image in enumerate(images)
        ]

    def _in_order(self, image: np.ndarray) -> np.ndarray:
        """An RGB image in the network's order of channels."""
        return image if self.metadata.input_format == "RGB" else image[:, :, ::-1]

    def _check_outputs(self, boxes: Any, scores: Any, classes: Any, n: int) -> None:
        wanted = {"boxes": (boxes, "f", 4), "scores": (scores, "f"), "classes": (classes, "i")}
        rows = getattr(scores, "shape", (n, 0))[1:2]
        for name, (array, kind, *last) in wanted.items():
            is_array = isinstance(array, np.ndarray) and array.dtype.kind == kind
            if not is_array or array.shape != (n, *rows, *last):
                raise ModelError(
                    f"{self._path} gives {name} of another type or shape than an exported OneNet:"
                    " export it again."
                )

    def _to_found(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        resized: tuple[int, int],
        image: np.ndarray,
    ) -> Found:
        """One image's rows of the output, without padding, in pixels of the original image."""
        keep = np.isfinite(scores) & (scores > 0) & np.isfinite(boxes).all(axis=1)
        boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
        height, width = image.shape[:2]
        scale = (width / resized[1], height / resized[0])
        corners = np.array(scale * 2, dtype=np.float32) * boxes
        corners = np.clip(corners, 0, np.array((width, height) * 2, dtype=np.float32))
        filled = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        classes = classes[filled]
        self._check_classes(classes)
        return Found(corners[filled], scores[filled], classes)

    def _check_classes(self, classes: np.ndarray) -> None:
        count = len(self.metadata.class_names)
        wrong = classes[(classes < 0) | (classes >= count)]
        if len(wrong):
            raise ModelError(
                f"{self._path} has found the class {wrong[0]}, but its metadata names the classes"
                f" 0 to {count - 1} only: export it again."
            )


def _load(
    path: str, providers: Sequence[Provider] | None, threads: int
) -> onnxruntime.InferenceSession:
    if not Path(path).is_file():
        raise ModelError(f"{path} does not exist or is no file: check the path of the model.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are for who wrote the graph
    options.intra_op_num_threads = threads
    available = onnxruntime.get_available_providers()
    if providers is None:
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in available]
        required = []
    else:
        required = [p if isinstance(p, str) else p[0] for p in providers]
    _check_providers(required, available)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's own have no other common class
        if Path(path).suffix.lower() in _TORCH_SUFFIXES:
            raise ModelError(
                f"{path} is a model for PyTorch, not ONNX: export it again, with a name that ends"
                " in .onnx."
            ) from None
        raise ModelError(
            f"{path} is not an ONNX file that ONNX Runtime {onnxruntime.__version__} can load"
            f" ({first_line(error)}): copy or export it again, or update onnxruntime."
        ) from error
    # Without the libraries of a provider, ONNX Runtime goes on with the CPU.
    _check_providers(required, session.get_providers())
    return session


def _check_providers(required: list[str], available: list[str]) -> None:
    for name in required:
        if name not in available:
            cure = "; for CUDA install onnxruntime-gpu" if name.startswith("CUDA") else ""
            raise ModelError(
                f"The provider {name} is not available, but {', '.join(available)}:"
                f" choose one of them, or install the ONNX Runtime that has it{cure}."
            )


def _check_signature(session: onnxruntime.InferenceSession, path: str) -> None:
    inputs = {node.name for node in session.get_inputs()}
    outputs = {node.name for node in session.get_outputs()}
    if inputs != _INPUTS or not outputs.issuperset(_OUTPUTS):
        raise ModelError(
            f"{path} has the inputs {sorted(inputs)} and outputs {sorted(outputs)}, not those of"
            " an exported OneNet: export it again."
        )


def _pad(images: list[np.ndarray], divisor: int) -> np.ndarray:
    """Images of one size in the upper left corners of a batch (N, H, W, 3), the rest 0."""
    height, width = images[0].shape[:2]
    shape = (-(-height // divisor) * divisor, -(-width // divisor) * divisor, 3)
    batch = np.zeros((len(images), *shape), dtype=np.uint8)
    batch[:, :height, :width] = images
    return batch
