"""The detector: images in, detections in the images' own pixels out."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import onnxruntime

from .errors import ImageError, ModelError, first_line
from .images import check_array, read_image
from .metadata import ModelMetadata
from .resize import resize_bilinear, resized_shape

__all__ = ["Detections", "Detector", "ImageLike", "Threshold"]

ImageLike: TypeAlias = str | os.PathLike[str] | np.ndarray
Threshold: TypeAlias = float | Literal["auto"]
Provider: TypeAlias = str | tuple[str, dict[str, Any]]

DEFAULT_THRESHOLD = 0.3
_INPUTS = {"images", "image_sizes"}
_OUTPUTS = ["boxes", "scores", "classes"]
_NO_LISTS = (str, bytes, bytearray, memoryview)  # sequences to Python
_TORCH_SUFFIXES = {".pt", ".pt2", ".pth", ".ts"}


class Detections(NamedTuple):
    """The n objects that were found in one image, best first.

    It is a tuple of four: ``len(detections.scores)`` is n, ``len(detections)`` is 4.

    Attributes:
        boxes: (n, 4) float32, corners x0, y0, x1, y1 in pixels of the original image.
        scores: (n,) float32 in (0, 1].
        classes: (n,) int64, indices into the model's ``class_names``.
        names: of the n objects' classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    names: list[str]


class Detector:
    """An exported OneNet.

    Attributes:
        metadata: what the file says of itself, the class names among it.
        providers: ONNX Runtime's execution providers in use, the first is the main one.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        threshold: Threshold | None = None,
        providers: Sequence[Provider] | None = None,
        *,
        channel_order: Literal["BGR", "RGB"] = "BGR",
    ) -> None:
        """Loads a model.

        Args:
            model: path of the ONNX file.
            threshold: lowest score of a detection, from 0 (all that the network gives) to 1;
                "auto" for the calibrated threshold of each class that the file has; None for
                "auto" where the file has them, 0.3 where not.
            providers: execution providers of ONNX Runtime, best first; None for CUDA where this
                ONNX Runtime has it, and the CPU.
            channel_order: of the images that are arrays: "BGR", as from cv2.imread, or "RGB".

        Raises:
            ModelError: the file is missing or no exported OneNet, or a provider is not available.
            ValueError: the threshold or the channel order is none; or the threshold is "auto"
                and the file has no calibrated ones.
        """
        if channel_order not in ("BGR", "RGB"):
            raise ValueError(f"channel_order is {channel_order!r}: give 'BGR' or 'RGB'.")
        self._arguments = {
            "model": os.path.abspath(model),  # for processes in other folders
            "threshold": threshold,
            "providers": providers,
            "channel_order": channel_order,
        }
        self._path = str(model)
        self._session = _load(self._path, providers)
        self.metadata = ModelMetadata.parse(
            self._session.get_modelmeta().custom_metadata_map, self._path
        )
        _check_signature(self._session, self._path)
        self.providers: list[str] = self._session.get_providers()
        self._channel_order = channel_order
        self._thresholds = self._per_class(threshold)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, so for other processes: loads the model from its file there."""
        return functools.partial(type(self), **self._arguments), ()

    # A str is a Sequence[str] too: the first overload is the one for it.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, images: ImageLike, *, threshold: Threshold | None = None
    ) -> Detections: ...

    @overload
    def __call__(
        self, images: Sequence[ImageLike], *, threshold: Threshold | None = None
    ) -> list[Detections]: ...

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], *, threshold: Threshold | None = None
    ) -> Detections | list[Detections]:
        """Detects the objects of an image, or of several images.

        Args:
            images: a path, an array (H, W, 3) uint8, or a list of those, of any sizes. Those that
                have one size after the resize run as one batch: padding them to a common size
                would change their scores, since the network's norms see it. Files are turned
                upright by their EXIF orientation, and boxes refer to the upright image.
            threshold: in place of the constructor's; 0 for all that the network gives.

        Returns:
            Detections; for a list of images, a list of them.

        Raises:
            ImageError: an image is missing, damaged or of the wrong kind.
            ModelError: ONNX Runtime cannot run the batch, for want of memory for instance; or a
                class has no name.
            ValueError: the threshold is none.
        """
        limits = self._thresholds if threshold is None else self._per_class(threshold)
        if isinstance(images, Sequence) and not isinstance(images, _NO_LISTS):
            names = [f"Image {i} of the batch" for i in range(len(images))]
            found = self._detect([self._read(i, n) for i, n in zip(images, names, strict=True)])
            return [_select(detections, limits) for detections in found]
        return _select(self._detect([self._read(images, "The image")])[0], limits)

    def select(self, detections: Detections, threshold: Threshold | None = None) -> Detections:
        """Those detections that reach a threshold.

        Args:
            detections: of this detector, found with a lower threshold.
            threshold: see the constructor; None for the constructor's.
        """
        limits = self._thresholds if threshold is None else self._per_class(threshold)
        return _select(detections, limits)

    def check(self, image: np.ndarray, name: str) -> None:
        """Raises ImageError, in which the image is called ``name``, unless it can be detected on.

        Args:
            image: should be (H, W, 3) uint8.
            name: the image's, for the message.
        """
        height, width = check_array(image, name).shape[:2]
        if 0 in self._resized_shape(height, width):
            raise ImageError(
                f"{name}, of {width} x {height} pixels, is too narrow: at the network's"
                f" {self.metadata.max_size} pixels for the longer side, the shorter one would"
                " vanish; crop it or cut it into tiles."
            )

    def _per_class(self, threshold: Threshold | None) -> np.ndarray:
        """The threshold of each class, (K,) float32."""
        calibrated = self.metadata.thresholds
        if threshold is None:
            threshold = DEFAULT_THRESHOLD if calibrated is None else "auto"
        if threshold == "auto":
            if calibrated is None:
                raise ValueError(
                    f"The threshold is 'auto', but {self._path} has no calibrated thresholds:"
                    " calibrate them when exporting, or give a number from 0 to 1."
                )
            return np.asarray(calibrated, dtype=np.float32)
        if isinstance(threshold, str) or not 0 <= threshold <= 1:
            raise ValueError(f"The threshold is {threshold!r}: give a number from 0 to 1, or auto.")
        return np.full(len(self.metadata.class_names), threshold, dtype=np.float32)

    def _read(self, image: ImageLike, name: str) -> np.ndarray:
        """An image in the order of channels that the network wants, (H, W, 3) uint8."""
        order: str = self._channel_order
        if isinstance(image, (str, os.PathLike)):
            name, order = str(image), "BGR"
            image = read_image(image)
        self.check(image, name)
        return image if order == self.metadata.input_format else image[:, :, ::-1]

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        return resized_shape(height, width, self.metadata.min_size, self.metadata.max_size)

    def _detect(self, images: list[np.ndarray]) -> list[Detections]:
        """All detections of images in the network's order of channels, a batch for each size."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            shape = self._resized_shape(*image.shape[:2])
            by_size.setdefault(shape, []).append(index)
        found: dict[int, Detections] = {}
        for shape, indices in by_size.items():
            batch = self._detect_batch([images[i] for i in indices], *shape)
            found.update(zip(indices, batch, strict=True))
        return [found[i] for i in range(len(images))]

    def _detect_batch(self, images: list[np.ndarray], height: int, width: int) -> list[Detections]:
        """All detections of images that are resized to one size."""
        sizes = np.array([(height, width)] * len(images), dtype=np.int64)
        batch = _pad(
            [resize_bilinear(image, height, width) for image in images],
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
            self._to_detections(boxes[i], scores[i], classes[i], (height, width), image)
            for i, image in enumerate(images)
        ]

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

    def _to_detections(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        resized: tuple[int, int],
        image: np.ndarray,
    ) -> Detections:
        """One image's rows of the output, without padding, in pixels of the original image."""
        keep = np.isfinite(scores) & (scores > 0) & np.isfinite(boxes).all(axis=1)
        boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
        height, width = image.shape[:2]
        scale = (width / resized[1], height / resized[0])
        corners = np.array(scale * 2, dtype=np.float32) * boxes
        corners = np.clip(corners, 0, np.array((width, height) * 2, dtype=np.float32))
        filled = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        classes = classes[filled]
        return Detections(corners[filled], scores[filled], classes, self._names(classes))

    def _names(self, classes: np.ndarray) -> list[str]:
        names = self.metadata.class_names
        wrong = classes[(classes < 0) | (classes >= len(names))]
        if len(wrong):
            raise ModelError(
                f"{self._path} has found the class {wrong[0]}, but its metadata names the classes"
                f" 0 to {len(names) - 1} only: export it again."
            )
        return [names[c] for c in classes]


def _load(path: str, providers: Sequence[Provider] | None) -> onnxruntime.InferenceSession:
    if not Path(path).is_file():
        raise ModelError(f"{path} does not exist or is no file: check the path of the model.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are for who wrote the graph
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


def _select(detections: Detections, thresholds: np.ndarray) -> Detections:
    keep = detections.scores >= thresholds[detections.classes]
    names = [name for name, kept in zip(detections.names, keep, strict=True) if kept]
    return Detections(
        detections.boxes[keep], detections.scores[keep], detections.classes[keep], names
    )
