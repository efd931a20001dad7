"""Static int8 quantisation of an exported ONNX file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .metadata import Metadata

__all__ = ["quantize"]

_PREDICTORS = ("cls_score", "bbox_pred")
_ACTIVATIONS = ("Clip", "Relu")  # within the range of a convolution's int8 output
_BETWEEN = (*_ACTIVATIONS, "Add", "MaxPool")  # in int8 within the backbone: no conversion there


def quantize(
    source: Path,
    output: Path,
    metadata: Metadata,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Quantises the convolutions of backbone and head, and what joins them in the backbone.

    The first convolution and the predictors stay in float: they cost little, and read pixels or
    write scores and boxes. So does all behind them.

    Args:
        source: a float32 ONNX file of :func:`onenet.export.write_exported`.
        output: the file to write.
        metadata: of the output.
        batches: calibration inputs, images and image_sizes of
            :meth:`onenet.export.network.ExportableOneNet.forward`.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            for images, sizes in self.batches:
                return {"images": images, "image_sizes": sizes}
            return None

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a pre-processing that changes nothing here
    try:
        quantize_static(
            source,
            output,
            Reader(),
            nodes_to_quantize=_nodes_to_quantize(onnx.load(source)),
            op_types_to_quantize=["Conv", *_BETWEEN],
            per_channel=True,
            activation_type=QuantType.QUInt8,  # signed ones are slow on x86 CPUs
        )
    finally:
        logging.disable(before)
    model = onnx.load(output)
    entries = {key: json.dumps(value) for key, value in metadata.entries().items()}
    onnx.helper.set_model_props(model, entries)
    onnx.checker.check_model(model)
    onnx.save(model, output)


def _nodes_to_quantize(model: object) -> list[str]:
    """Names of nodes; convolutions are told by the names of their weights."""
    nodes = list(model.graph.node)
    constants = {x.name for x in model.graph.initializer}
    convolutions = [
        i
        for i, node in enumerate(nodes)
        if node.op_type == "Conv" and node.input[1].startswith(("backbone.", "head."))
    ]
    found = [
        nodes[i]
        for i in convolutions[1:]
        if not any(name in nodes[i].input[1] for name in _PREDICTORS)
    ]
    last = max(i for i in convolutions if nodes[i].input[1].startswith("backbone."))
    for node in nodes[convolutions[0] + 1 : last]:
        is_bias = node.op_type == "Add" and not constants.isdisjoint(node.input)
        if node.op_type in _BETWEEN and not is_bias:
            found.append(node)
    return [node.name for node in found]
