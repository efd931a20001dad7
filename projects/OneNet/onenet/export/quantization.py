"""Static int8 quantisation of an exported ONNX file."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import ConfigError
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
) -> tuple[int, int]:
    """Quantises the convolutions of backbone and head, and what joins them in the backbone.

    The first convolution and the predictors stay in float: they cost little, and read pixels or
    write scores and boxes. So does all behind them. A range goes from the smallest value to the
    largest, both averaged over the images; biases make up for the mean error of rounded weights.

    Args:
        source: a float32 ONNX file of :func:`onenet.export.write_exported`.
        output: the file to write.
        metadata: of the output.
        batches: calibration inputs, images and image_sizes of
            :meth:`onenet.export.network.ExportableOneNet.forward`; iterated over twice.

    Returns:
        The numbers of quantised convolutions, and of all.

    Raises:
        ConfigError: none can be quantised.
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
    convolutions = [node.name for node in original.graph.node if node.op_type == "Conv"]
    if not (quantised := set(nodes).intersection(convolutions)):
        raise ConfigError("int8: no convolution of backbone or head has constant weights.")
    _add_biases(original, nodes)
    before = logging.root.manager.disable
    with tempfile.TemporaryDirectory() as folder:
        # ONNX Runtime writes beside its input
        with_biases, written = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(original, with_biases)
        logging.disable(logging.WARNING)  # it recommends a pre-processing that changes nothing here
        try:
            quantize_static(
                with_biases,
                written,
                Reader(),
                nodes_to_quantize=nodes,
                op_types_to_quantize=["Conv", *_BETWEEN],
                per_channel=True,
                activation_type=QuantType.QUInt8,  # signed ones are slow on x86 CPUs
                extra_options={"CalibMovingAverage": True},
            )
        finally:
            logging.disable(before)
        model = onnx.load(written)
    _correct_biases(model, original, batches)
    entries = {key: json.dumps(value) for key, value in metadata.entries().items()}
    onnx.helper.set_model_props(model, entries)
    onnx.checker.check_model(model)
    onnx.save(model, output)
    return len(quantised), len(convolutions)


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
    model: Any, original: Any, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Subtracts from biases the mean that rounded weights add (arXiv 1906.04721, section 4.2).

    That is the mean output of the convolution with the weights' errors, in the float model.

    Args:
        model: the int8 ModelProto, changed in place.
        original: the float one, of which it was made.
        batches: see :func:`quantize`.
    """
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    constants = {x.name: x for x in model.graph.initializer}
    weights = {x.name: numpy_helper.to_array(x) for x in original.graph.initializer}
    # A bias keeps its name behind its DequantizeLinear
    dequantised = {
        node.output[0]: [constants.get(name) for name in node.input[:2]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    probe = onnx.ModelProto()
    probe.CopyFrom(original)
    del probe.graph.output[:]
    axes = numpy_helper.from_array(np.array([0, 2, 3]), "probe_axes")
    probe.graph.initializer.append(axes)
    originals = {node.name: node for node in original.graph.node if node.op_type == "Conv"}
    biases = []
    for node in model.graph.node:
        if node.name not in originals or node.input[1] not in dequantised:
            continue
        levels, scale = map(numpy_helper.to_array, dequantised[node.input[1]])
        convolution = onnx.NodeProto()
        convolution.CopyFrom(originals[node.name])
        errors = levels * scale.reshape(-1, 1, 1, 1) - weights[convolution.input[1]]
        names = [f"probe_{len(biases)}_{kind}" for kind in ("errors", "output", "mean")]
        probe.graph.initializer.append(numpy_helper.from_array(errors, names[0]))
        convolution.input[:] = [convolution.input[0], names[0]]
        convolution.output[0] = convolution.name = names[1]
        mean = helper.make_node("ReduceMean", [names[1], axes.name], [names[2]], keepdims=0)
        probe.graph.node.extend([convolution, mean])
        probe.graph.output.append(helper.make_empty_tensor_value_info(names[2]))
        biases.append(dequantised[node.input[2]])
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    means = [session.run(None, {"images": i, "image_sizes": s}) for i, s in batches]
    for (bias, step), *shifts in zip(biases, *means, strict=True):
        levels = np.rint(np.mean(shifts, axis=0) / numpy_helper.to_array(step)).astype(np.int32)
        corrected = numpy_helper.to_array(bias) - levels
        bias.CopyFrom(numpy_helper.from_array(corrected, bias.name))


def _nodes_to_quantize(model: object) -> list[str]:
    """Names of nodes; convolutions are told by the names of their weights."""
    nodes = list(model.graph.node)
    constants = {x.name for x in model.graph.initializer}
    convolutions = [
        i
        for i, node in enumerate(nodes)
        if node.op_type == "Conv" and node.input[1].startswith(("backbone.", "head."))
    ]
    if not convolutions:
        return []
    found = [
        nodes[i]
        for i in convolutions[1:]
        if not any(name in nodes[i].input[1] for name in _PREDICTORS)
    ]
    last = max((i for i in convolutions if nodes[i].input[1].startswith("backbone.")), default=0)
    for node in nodes[convolutions[0] + 1 : last]:
        is_bias = node.op_type == "Add" and not constants.isdisjoint(node.input)
        if node.op_type in _BETWEEN and not is_bias:
            found.append(node)
    return [node.name for node in found]
