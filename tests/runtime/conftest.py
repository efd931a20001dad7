"""Makes ``onenet_runtime`` importable where it is not installed, and small models of its format."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

RUNTIME = Path(__file__).resolve().parents[2] / "projects" / "OneNet" / "runtime"

if importlib.util.find_spec("onenet_runtime") is None:
    sys.path.insert(0, str(RUNTIME))

METADATA: dict[str, Any] = {
    "onenet_format": 1,
    "class_names": ["cat", "dog"],
    "category_ids": [17, 18],
    "input_format": "RGB",
    "min_size": 64,
    "max_size": 100,
    "size_divisibility": 32,
    "max_detections": 6,
    "config_digest": "0" * 64,
    "onenet_version": "0.1.0",
    "precision": "float32",
}

# Corners of the six boxes as parts of the resized image's width and height. The third is to be
# clipped. The fourth has no height, the fifth is infinite, the sixth is padding: all dropped.
BOXES = np.array(
    [
        [0.1, 0.2, 0.5, 0.9],
        [0.5, 0.5, 1.0, 1.0],
        [-0.1, -0.2, 0.25, 0.3],
        [0.1, 0.4, 0.6, 0.4],
        [0.1, 0.1, np.inf, 0.2],
        [0.3, 0.3, 0.4, 0.4],
    ],
    dtype=np.float32,
)
SCORES = np.array([0.9, 0.5, 0.2, 0.19, 0.18, 0.0], dtype=np.float32)
CLASSES = np.array([1, 0, 1, 0, 0, 0], dtype=np.int64)


node = helper.make_node


def constants(**values: Any) -> list[onnx.NodeProto]:
    """A node for each; integers become int64, all else float32."""
    nodes = []
    for name, value in values.items():
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        nodes.append(node("Constant", [], [name], value=numpy_helper.from_array(array)))
    return nodes


def tables(rows: int) -> list[onnx.NodeProto]:
    """Nodes that make boxes, BOXES times each image's size, and classes, the same for all."""
    return [
        *constants(parts=BOXES[None, :rows], labels=CLASSES[None, :rows], k=[rows]),
        *constants(order=[1, 0, 1, 0], axis=[1]),
        node("Gather", ["image_sizes", "order"], ["whwh"], axis=1),
        node("Cast", ["whwh"], ["whwh_float"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["whwh_float", "axis"], ["scale"]),
        node("Mul", ["parts", "scale"], ["boxes"]),
        node("Shape", ["image_sizes"], ["n"], start=0, end=1),
        node("Concat", ["n", "k"], ["n_k"], axis=0),
        node("Expand", ["labels", "n_k"], ["classes"]),
    ]


def fixed_nodes() -> list[onnx.NodeProto]:
    """Six rows of each image, with SCORES."""
    return [
        *tables(6),
        *constants(table=SCORES[None]),
        node("Expand", ["table", "n_k"], ["scores"]),
    ]


def pixel_nodes() -> list[onnx.NodeProto]:
    """Three rows of each image; the scores are its first pixel's channels, divided by 255."""
    return [
        *tables(3),
        *constants(zeros=[0, 0], ones=[1, 1], axes=[1, 2], white=255.0),
        node("Slice", ["images", "zeros", "ones", "axes"], ["pixel"]),
        node("Squeeze", ["pixel", "axes"], ["channels"]),
        node("Cast", ["channels"], ["channels_float"], to=TensorProto.FLOAT),
        node("Div", ["channels_float", "white"], ["scores"]),
    ]


def shape_nodes() -> list[onnx.NodeProto]:
    """Two rows of each image; the scores are the batch's height and width, divided by 1000."""
    return [
        *tables(2),
        *constants(thousand=1000.0),
        node("Shape", ["images"], ["hw"], start=1, end=3),
        node("Cast", ["hw"], ["hw_float"], to=TensorProto.FLOAT),
        node("Div", ["hw_float", "thousand"], ["parts_of_thousand"]),
        node("Expand", ["parts_of_thousand", "n_k"], ["scores"]),
    ]


NODES = {"fixed": fixed_nodes, "pixel": pixel_nodes, "shape": shape_nodes}


def save_model(path: Path, kind: str, metadata: dict[str, Any]) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        NODES[kind](),
        "fake",
        [
            value("images", TensorProto.UINT8, ["n", "h", "w", 3]),
            value("image_sizes", TensorProto.INT64, ["n", 2]),
        ],
        [
            value("boxes", TensorProto.FLOAT, ["n", "k", 4]),
            value("scores", TensorProto.FLOAT, ["n", "k"]),
            value("classes", TensorProto.INT64, ["n", "k"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: json.dumps(item) for key, item in metadata.items()})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


class Rows(NamedTuple):
    """What the "fixed" model gives, the boxes as parts of the resized image's width and height."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@pytest.fixture
def rows() -> Rows:
    return Rows(BOXES.copy(), SCORES.copy(), CLASSES.copy())


@pytest.fixture
def runtime_folder() -> Path:
    """Of the package's project."""
    return RUNTIME


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """``make_model("fixed", min_size=0)`` writes a model; a value of None leaves the key out."""

    def make(kind: str = "fixed", **changes: Any) -> Path:
        metadata = {k: v for k, v in {**METADATA, **changes}.items() if v is not None}
        return save_model(tmp_path / f"{kind}_{len(list(tmp_path.iterdir()))}.onnx", kind, metadata)

    return make


@pytest.fixture
def make_image() -> Callable[..., np.ndarray]:
    """``make_image(height, width)``: smooth noise (H, W, 3) uint8, the same each time."""

    def make(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
        small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)

    return make
