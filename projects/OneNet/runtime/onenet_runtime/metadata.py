"""What an exported OneNet says of itself: the metadata of the ONNX file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelError

__all__ = ["FORMAT", "ModelMetadata"]

FORMAT = 1  # newest ``onenet_format`` that this package knows
_OPTIONAL = {"category_ids", "thresholds"}
_RANGES = {  # lowest and highest; a max_size may be as good as none
    "min_size": (0, 1 << 16),
    "max_size": (1, sys.maxsize),
    "size_divisibility": (1, 1 << 16),
    "max_detections": (1, sys.maxsize),
}


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of an exported OneNet.

    Attributes:
        class_names: of the K classes.
        category_ids: the data set's id of each class; None where the file has none, as the data set
            was not at hand when it was exported.
        thresholds: calibrated score threshold of each class; None where the file has none.
        input_format: order of the channels that the network wants, "RGB" or "BGR".
        min_size: what the shorter side of an image is resized to, in pixels; 0 for no resize.
        max_size: what the longer side may be at most, in pixels.
        size_divisibility: the sides of a batch are multiples of it.
        max_detections: rows of the output.
        config_digest: SHA-256 of the config that the network was trained with.
        onenet_version: of the exporter.
        precision: "float32", "float16" or "int8".
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None
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
        version = _decode(properties, "onenet_format", path)
        if not _is_int(version) or version < 1:
            raise _broken(path, "onenet_format")
        if version > FORMAT:
            raise ModelError(
                f"{path} has the export format {version}, newer than {FORMAT}, the newest that"
                " this onenet-runtime knows: update onenet-runtime, or export the model again with"
                " the OneNet of this version."
            )
        values: dict[str, Any] = {}
        for key in cls.__dataclass_fields__:
            absent = key in _OPTIONAL and key not in properties
            value = None if absent else _decode(properties, key, path)
            if not _is_valid(key, value):
                raise _broken(path, key)
            values[key] = tuple(value) if isinstance(value, list) else value
        for key in ("category_ids", "thresholds"):
            if values[key] is not None and len(values[key]) != len(values["class_names"]):
                raise _broken(path, key)
        return cls(**values)


def _decode(properties: Mapping[str, str], key: str, path: str) -> Any:
    try:
        return json.loads(properties[key])
    except (KeyError, ValueError, RecursionError):
        raise _broken(path, key) from None


def _is_valid(key: str, value: Any) -> bool:
    """Whether a value has the type and the range of its attribute."""
    if key in _OPTIONAL and value is None:
        return True
    if key in _RANGES:
        lowest, highest = _RANGES[key]
        return _is_int(value) and lowest <= value <= highest
    if key in _ITEMS:
        return isinstance(value, list) and len(value) > 0 and all(map(_ITEMS[key], value))
    return isinstance(value, str) and (key != "input_format" or value in ("RGB", "BGR"))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_threshold(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and 0 <= value <= 1  # NaN is not


_ITEMS: dict[str, Callable[[Any], bool]] = {
    "class_names": lambda value: isinstance(value, str),
    "category_ids": _is_int,
    "thresholds": _is_threshold,
}


def _broken(path: str, key: str) -> ModelError:
    return ModelError(f"{path} lacks a valid value of {key} in its metadata: export it again.")
