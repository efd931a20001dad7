"""Static int8 quantisation of an exported ONNX file."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Quantises the convolutions of backbone and head, and what joins them in the backbone.

    The first convolution and the predictors stay in float: they cost little, and read pixels or
    write scores and boxes. So does all behind them. A range goes from the smallest value to the
    largest, both averaged over the images; biases make up for the mean error of rounded weights.

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

    original = onnx.load(source)
    nodes = _nodes_to_quantize(original)
    _add_biases(original, nodes)
    onnx.save(original, output)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a pre-processing that changes nothing here
    try:
        quantize_static(
            output,
            output,
            Reader(),
            nodes_to_quantize=nodes,
            op_types_to_quantize=["Conv", *_BETWEEN],
            per_channel=True,
            activation_type=QuantType.QUInt8,  # signed ones are slow on x86 CPUs
            extra_options={"CalibMovingAverage": True},
        )
    finally:
        logging.disable(before)
    model = onnx.load(output)
    _correct_biases(model, original, batches)
    entries = {key: json.dumps(value) for key, value in metadata.entries().items()}
    onnx.helper.set_model_props(model, entries)
    onnx.checker.check_model(model)
    onnx.save(model, output)


def _add_biases(model: Any, names: list[str]) -> None:
    """Gives the convolutions among these nodes a bias, where they have none."""
    from onnx import numpy_helper

    weights = {x.name: x for x in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.name in names and len(node.input) == 2:
            zeros = np.zeros(weights[node.input[1]].dims[0], np.float32)
            node.input.append(f"{node.name}_bias")
            model.graph.initializer.append(numpy_helper.from_array(zeros, node.input[2]))


def _correct_biases(
    model: Any, original: Any, batches: Sequence[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Subtracts from biases the mean that rounded weights add (arXiv 1906.04721, section 4.2).

    A weight with an error e adds e times its input to the output, so on average e times the
    input's mean, which the float model has on the batches.

    Args:
        model: the int8 ModelProto, changed in place.
        original: the float one, of which it was made.
        batches: see :func:`quantize`.
    """
    from onnx import numpy_helper

    constants = {x.name: x for x in model.graph.initializer}
    weights = {x.name: numpy_helper.to_array(x) for x in original.graph.initializer}
    dequantised = {
        node.output[0]: [constants.get(name) for name in node.input[:2]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    before = {node.name: node.input for node in original.graph.node if node.op_type == "Conv"}
    convolutions = [
        node for node in model.graph.node if node.name in before and node.input[1] in dequantised
    ]
    means = _channel_means(original, {before[node.name][0] for node in convolutions}, batches)
    for node in convolutions:
        (levels, scale), (bias, step) = (dequantised[name] for name in node.input[1:])
        scale = numpy_helper.to_array(scale).reshape(-1, 1, 1, 1)
        source, weight, _ = before[node.name]
        errors = numpy_helper.to_array(levels) * scale - weights[weight]
        groups = means[source].reshape(-1, errors.shape[1])  # (groups, inputs of each)
        inputs = groups.repeat(len(errors) // len(groups), axis=0)
        shift = (errors.sum(axis=(2, 3)) * inputs).sum(axis=1) / numpy_helper.to_array(step)
        corrected = numpy_helper.to_array(bias) - np.rint(shift).astype(np.int32)
        bias.CopyFrom(numpy_helper.from_array(corrected, bias.name))


def _channel_means(
    model: Any, names: set[str], batches: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The mean of each channel of these (N, C, H, W) tensors over the batches."""
    import onnx
    import onnxruntime

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    wanted = sorted(names)
    probed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(x) for x in wanted)
    session = onnxruntime.InferenceSession(
        probed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    means = [
        [x.mean(axis=(0, 2, 3)) for x in session.run(wanted, {"images": i, "image_sizes": s})]
        for i, s in batches
    ]
    return {name: np.mean([x[i] for x in means], axis=0) for i, name in enumerate(wanted)}


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
