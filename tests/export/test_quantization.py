"""The int8 file: what is quantised, and that it still computes the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

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
