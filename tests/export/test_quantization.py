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


def test_biases_make_up_for_rounded_weights(tmp_path: Path) -> None:
    """Seven of eight weights are below half a step of the eighth's scale, so they round to 0."""
    rng = np.random.default_rng(0)
    stem = rng.uniform(0, 0.01, (8, 3, 1, 1))
    depthwise = np.full((8, 1, 3, 3), 0.003)  # the sum of each is 1.024
    depthwise[:, :, 1, 1] = 1
    pointwise = np.full((4, 8, 1, 1), 0.003)
    pointwise[:, 0] = 1
    layers = {"backbone.stem": stem, "backbone.depthwise": depthwise, "head.pointwise": pointwise}
    constants, nodes = [], [helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Transpose", ["float"], ["x0"], perm=[0, 3, 1, 2]))
    for i, (name, weight) in enumerate(layers.items()):
        inputs = [f"x{i}", f"{name}.weight", f"{name}.bias"]
        bias = rng.uniform(0, 1, len(weight))
        for key, array in zip(inputs[1:], (weight, bias), strict=True):
            constants.append(numpy_helper.from_array(array.astype(np.float32), key))
        group = len(weight) if "depthwise" in name else 1
        nodes.append(helper.make_node("Conv", inputs, [f"x{i + 1}"], name, group=group))
    value = helper.make_tensor_value_info
    inputs = [
        value("images", TensorProto.UINT8, ["n", "h", "w", 3]),
        value("image_sizes", TensorProto.INT64, ["n", 2]),
    ]
    output = [value("x3", TensorProto.FLOAT, ["n", 4, "y", "x"])]
    graph = helper.make_graph(nodes, "three", inputs, output, constants)
    opset = [helper.make_opsetid("", 20)]
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), source)

    class Nothing:
        def entries(self) -> dict:
            return {}

    images = rng.integers(0, 256, (4, 1, 32, 24, 3), dtype=np.uint8)
    sizes = np.array([[32, 24]])
    quantize(source, target, Nothing(), [(image, sizes) for image in images])
    means = []
    for file in (source, target):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        feeds = [{"images": image, "image_sizes": sizes} for image in images]
        means.append(np.mean([session.run(None, x)[0].mean((0, 2, 3)) for x in feeds], axis=0))
    assert means[0].min() > 2
    np.testing.assert_allclose(means[1], means[0], rtol=2e-3)  # else 4.7e-2
