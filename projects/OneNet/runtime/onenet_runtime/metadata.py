"""What an exported OneNet says of itself: the metadata of the ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelError

__all__ = ["FORMAT", "ModelMetadata"]

FORMAT = 1  # newest ``onenet_format`` that this package knows


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of an exported OneNet.

    Attributes:
        class_names: of the K classes.
        category_ids: the data set's id of each class.
        thresholds: calibrated score threshold of each class; None where the file has none.
        input_format: order of the channels that the network wants, "RGB" or "BGR".
        min_size: what the shorter side of an image is resized to, in pixels; 0 for no resize.
        max_size: what the longer side may be at most, in pixels.
        size_divisibility: the sides of a batch are multiples of it.
        max_detections: rows of the output.
        config_digest: SHA-256 of the config that the network was trained with.
        onenet_version: of the exporter.
        precision: "float32" or "float16".
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    thresholds: tuple[float, ...] | None
    input_format: str
    min_size: int
    max_size: int
    size_divisibility: int
    max_detections: int
    config_digest: str
    onenet_version: str
    precision: str

    @classmethod
    def parse(cls, properties: Mapping[str, str], path: str) -> ModelMetadata:
        """Reads the properties of an ONNX file.

        Args:
            properties: ``metadata_props``, each value in JSON.
            path: of the file, for the messages.

        Raises:
            ModelError: the file is no exported OneNet, one of a newer format, or a broken one.
        """
        if "onenet_format" not in properties:
            raise ModelError(
                f"{path} is an ONNX file but no exported OneNet (it lacks the metadata):"
                " export the model with OneNet's exporter, and keep its metadata in later steps."
            )
        try:
            version = int(properties["onenet_format"])
        except ValueError:
            raise _broken(path, "onenet_format") from None
        if version > FORMAT:
            raise ModelError(
                f"{path} has the export format {version}, newer than {FORMAT}, the newest that"
                " this onenet-runtime knows: update onenet-runtime, or export the model again with"
                " the OneNet of this version."
            )
        values = {
            key: _decode(properties, key, path)
            for key in cls.__dataclass_fields__
            if key != "thresholds" or key in properties
        }
        metadata = _build(cls, values, path)
        _check(metadata, path)
        return metadata


def _decode(properties: Mapping[str, str], key: str, path: str) -> Any:
    try:
        return json.loads(properties[key])
    except (KeyError, ValueError):
        raise _broken(path, key) from None


def _build(cls: type[ModelMetadata], values: dict[str, Any], path: str) -> ModelMetadata:
    """Values in the types of the attributes."""
    converters: dict[str, Callable[[Any], Any]] = {
        "class_names": lambda names: tuple(str(name) for name in names),
        "category_ids": lambda ids: tuple(int(i) for i in ids),
        "thresholds": lambda limits: None if limits is None else tuple(map(float, limits)),
        "min_size": int,
        "max_size": int,
        "size_divisibility": int,
        "max_detections": int,
    }
    converted: dict[str, Any] = {"thresholds": None}
    for key, value in values.items():
        try:
            converted[key] = converters.get(key, str)(value)
        except (TypeError, ValueError):
            raise _broken(path, key) from None
    return cls(**converted)


def _check(metadata: ModelMetadata, path: str) -> None:
    num_classes = len(metadata.class_names)
    if num_classes == 0:
        raise _broken(path, "class_names")
    if len(metadata.category_ids) != num_classes:
        raise _broken(path, "category_ids")
    if metadata.thresholds is not None and len(metadata.thresholds) != num_classes:
        raise _broken(path, "thresholds")
    if metadata.input_format not in ("RGB", "BGR"):
        raise _broken(path, "input_format")
    for key, lowest in (("min_size", 0), ("max_size", 1), ("size_divisibility", 1)):
        if getattr(metadata, key) < lowest:
            raise _broken(path, key)


def _broken(path: str, key: str) -> ModelError:
    return ModelError(f"{path} lacks a valid value of {key} in its metadata: export it again.")
