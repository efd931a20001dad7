"""The int8 file: what is quantised, and that it still computes the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onenet.export import ExportableOneNet, Metadata, open_exported, write_exported
from onenet.export.quantization import quantize
from onenet.utils.errors import ConfigError


@pytest.mark.slow
def test_only_convolutions_of_backbone_and_head_are_int8(build, tmp_path: Path) -> None:
    cfg, model = build("digits/recommended_R18_FPN")
    names = [str(i) for i in range(model.head.num_classes)]
    metadata = Metadata.from_model(cfg, model, names, thresholds=None)
    source, output = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    write_exported(ExportableOneNet(model), metadata, source)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 1, 96, 64, 3), dtype=np.uint8)
    sizes = np.array([[96, 64]])
    metadata = replace(metadata, precision="int8")
    quantize(source, output, metadata, [(image, sizes) for image in images])

    run, entries = open_exported(output)
    assert entries == metadata.entries()
    assert output.stat().st_size < 0.4 * source.stat().st_size
    nodes = list(onnx.load(output).graph.node)
    maker = {name: node for node in nodes for name in node.output}
    weights = [
        maker[node.input[1]].input[0] if node.input[1] in maker else node.input[1]
        for node in nodes
        if node.op_type == "Conv"
    ]
    in_float = [name for name in weights if not name.endswith("_quantized")]
    assert len(weights) > 30 and "stem" in in_float[0]
    assert all("cls_score" in name or "bbox_pred" in name for name in in_float[1:])
    constants = {x.name: x.data_type for x in onnx.load(output).graph.initializer}
    zeros = {constants[node.input[2]] for node in nodes if node.op_type == "QuantizeLinear"}
    assert zeros == {onnx.TensorProto.UINT8}  # of activations; signed ones are no faster than float
    kinds = [node.op_type for node in nodes]
    assert "QuantizeLinear" not in kinds[kinds.index("TopK") :]  # boxes and rescoring are in float

    _, scores, _ = run(images[0], sizes)
    _, expected, _ = open_exported(source)[0](images[0], sizes)
    assert 0 < np.abs(scores - expected).max() < 0.1


class Nothing:
    """Metadata without entries."""

    def entries(self) -> dict[str, object]:
        return {}


@pytest.fixture
def save_convolutions(tmp_path: Path):
    """Writes a model of convolutions: ``save_convolutions({name: (weight, bias, attributes)})``."""

    def save(layers: dict[str, tuple[np.ndarray, np.ndarray | None, dict]]) -> Path:
        nodes = [helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT)]
        nodes.append(helper.make_node("Transpose", ["float"], ["x0"], perm=[0, 3, 1, 2]))
        constants = []
        for i, (name, (weight, bias, attributes)) in enumerate(layers.items()):
            inputs = [f"x{i}", f"{name}.weight", f"{name}.bias"][: 2 if bias is None else 3]
            for key, array in zip(inputs[1:], (weight, bias), strict=False):
                constants.append(numpy_helper.from_array(array.astype(np.float32), key))
            nodes.append(helper.make_node("Conv", inputs, [f"x{i + 1}"], name, **attributes))
        value = helper.make_tensor_value_info
        inputs = [
            value("images", TensorProto.UINT8, ["n", "h", "w", 3]),
            value("image_sizes", TensorProto.INT64, ["n", 2]),
        ]
        output = [value(f"x{len(layers)}", TensorProto.FLOAT, ["n", "c", "y", "x"])]
        graph = helper.make_graph(nodes, "convolutions", inputs, output, constants)
        opset = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "f.onnx")
        return tmp_path / "f.onnx"

    return save


def test_biases_make_up_for_rounded_weights(save_convolutions, tmp_path: Path) -> None:
    """All weights but one of each filter are below half a step, so they round to 0."""
    rng = np.random.default_rng(0)
    grouped, pointwise = np.full((16, 4, 3, 3), 0.003), np.full((4, 16, 1, 1), 0.003)
    grouped[:, 0, 1, 1] = pointwise[:, 0] = 1
    stem = rng.uniform(0, 0.01, (8, 3, 1, 1)) * np.arange(1, 9).reshape(-1, 1, 1, 1)
    source = save_convolutions(
        {
            "backbone.stem": (stem, rng.uniform(0, 1, 8), {}),
            "backbone.grouped": (grouped, None, dict(group=2, strides=[4, 4], pads=[1] * 4)),
            "head.pointwise": (pointwise, rng.uniform(0, 1, 4), {}),
        }
    )
    images = rng.integers(0, 256, (4, 1, 16, 12, 3), dtype=np.uint8)
    sizes, target = np.array([[16, 12]]), tmp_path / "int8.onnx"
    batches = [(image, sizes) for image in images]
    assert quantize(source, target, Nothing(), batches) == (2, 3)
    means = []
    for file in (source, target):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        outputs = [session.run(None, {"images": i, "image_sizes": sizes})[0] for i in images]
        means.append(np.mean(outputs, axis=(0, 1, 3, 4)))
    assert means[0].min() > 2
    np.testing.assert_allclose(means[1], means[0], rtol=5e-3)  # else 0.31


def test_ranges_are_averaged_over_the_images(save_convolutions, tmp_path: Path) -> None:
    ones = np.ones((1, 1, 1, 1))
    source = save_convolutions(
        {"backbone.stem": (np.ones((1, 3, 1, 1)), None, {}), "head.first": (ones, None, {})}
    )
    batches = [(np.full((1, 2, 2, 3), x, np.uint8), np.array([[2, 2]])) for x in (50, 120)]
    quantize(source, tmp_path / "int8.onnx", Nothing(), batches)
    model = onnx.load(tmp_path / "int8.onnx")
    constants = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    (node,) = (x for x in model.graph.node if x.op_type == "QuantizeLinear" and x.input[0] == "x1")
    assert constants[node.input[1]] == pytest.approx(3 * (50 + 120) / 2 / 255)


def test_without_constant_weights_there_is_no_int8(save_convolutions, tmp_path: Path) -> None:
    source = save_convolutions({"view_29": (np.ones((1, 3, 1, 1)), None, {})})
    with pytest.raises(ConfigError, match="no convolution of backbone or head"):
        quantize(source, tmp_path / "int8.onnx", Nothing(), [])
    assert not (tmp_path / "int8.onnx").exists()
