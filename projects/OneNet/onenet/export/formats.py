"""Writing and running of ONNX, torch.export and TorchScript files."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import ConfigError
from .metadata import Metadata
from .network import ExportableOneNet

__all__ = ["FORMATS", "Runner", "open_exported", "write_exported"]

Runner = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Maps images and image_sizes to boxes, scores and classes; see
:meth:`onenet.export.network.ExportableOneNet.forward`."""

FORMATS = {".onnx": "ONNX", ".pt2": "torch.export", ".ts": "TorchScript"}
"""Name of the format by file ending."""

_OPSET = 20  # DeformConv is standard since 19
_INPUTS, _OUTPUTS = ["images", "image_sizes"], ["boxes", "scores", "classes"]
_MAX_BATCH, _MAX_SIDE = 1024, 16384
_METADATA_FILE = "metadata.json"  # within .pt2 and .ts


def write_exported(network: ExportableOneNet, metadata: Metadata, path: str | Path) -> None:
    """Writes a detector to a file in the format of its ending.

    Number of images, height and width are dynamic; height and width are multiples of
    ``metadata.size_divisibility``. torch.export needs them above the stride of the coarsest map,
    TorchScript needs images with at least k samples.

    Args:
        network: on the CPU.
        metadata: stored in ONNX's metadata_props, or in an extra file of the other formats.
        path: with an ending of :data:`FORMATS`.

    Raises:
        ConfigError: the format is unknown, or needs a package that is not installed.
    """
    suffix = Path(path).suffix
    writers = {".onnx": _write_onnx, ".pt2": _write_program, ".ts": _write_torchscript}
    if suffix not in writers:
        raise ConfigError(
            f"The output {path} ends in '{suffix}'; the format follows from the ending: "
            + ", ".join(f"{ending} ({name})" for ending, name in FORMATS.items())
            + "."
        )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing and deprecation within torch
        writers[suffix](network, metadata, str(path))


def open_exported(path: str | Path) -> tuple[Runner, dict[str, object]]:
    """Loads a file of :func:`write_exported` on the CPU.

    Args:
        path: with an ending of :data:`FORMATS`.

    Returns:
        The detector, and the entries of its metadata. That of a .pt2 file raises ConfigError for
        images smaller than :func:`write_exported` says.
    """
    suffix = Path(path).suffix
    if suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

        def run_onnx(images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
            return tuple(session.run(_OUTPUTS, dict(zip(_INPUTS, (images, sizes), strict=True))))

        entries = session.get_modelmeta().custom_metadata_map
        return run_onnx, {key: json.loads(value) for key, value in entries.items()}
    extra_files = {_METADATA_FILE: ""}
    if suffix == ".pt2":
        module = torch.export.load(str(path), extra_files=extra_files).module()
    else:
        module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra_files)

    @torch.no_grad()
    def run_torch(images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            outputs = module(torch.from_numpy(images), torch.from_numpy(sizes))
        except AssertionError as error:  # a guard of torch.export on the shapes
            raise ConfigError(
                f"A {suffix} file does not take images padded to {images.shape[2]} x"
                f" {images.shape[1]} pixels, but only more than the stride of its coarsest feature"
                " map a side: raise INPUT.MIN_SIZE_TEST, or export as .onnx."
            ) from error
        return tuple(x.numpy() for x in outputs)

    return run_torch, json.loads(extra_files[_METADATA_FILE])


def _example(metadata: Metadata) -> tuple[Tensor, Tensor]:
    """Example inputs of different sizes, since 1 or equal sizes may become constants."""
    side = metadata.size_divisibility
    height, width = (-(-pixels // side) * side for pixels in (384, 512))
    images = torch.randint(256, (2, height, width, 3), dtype=torch.uint8)
    return images, torch.tensor([[height, width], [height - side // 2, width - side // 2]])


def _dynamic_shapes(metadata: Metadata, least_cells: int = 1) -> dict[str, dict[int, object]]:
    side = metadata.size_divisibility
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    sides = {
        axis: torch.export.Dim(name, min=least_cells, max=_MAX_SIDE // side) * side
        for axis, name in ((1, "height_cells"), (2, "width_cells"))
    }
    return {"images": {0: batch, **sides}, "image_sizes": {0: batch}}


def _write_onnx(network: ExportableOneNet, metadata: Metadata, path: str) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401  (needed by the parity check)
        import onnxscript  # noqa: F401  (needed by torch's exporter)
    except ImportError as error:
        raise ConfigError(
            f"Writing ONNX needs the package {error.name}: pip install onnx onnxscript onnxruntime"
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        network,
        _example(metadata),
        dynamo=True,
        verbose=False,
        dynamic_shapes=_dynamic_shapes(metadata),
        input_names=_INPUTS,
        output_names=_OUTPUTS,
        opset_version=_OPSET,
    )
    model = program.model_proto
    _name_axes(model)
    for key, value in metadata.entries().items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    model.doc_string = "OneNet: end-to-end object detection without NMS"
    _check_operators(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _name_axes(model: object) -> None:
    """Names the dynamic axes of inputs and outputs, instead of the exporter's formulas."""
    axes = {
        "images": ("batch", "height", "width"),
        "image_sizes": ("batch",),
        "boxes": ("batch", "detections"),
        "scores": ("batch", "detections"),
        "classes": ("batch", "detections"),
    }
    for value in (*model.graph.input, *model.graph.output):
        for index, name in enumerate(axes[value.name]):
            value.type.tensor_type.shape.dim[index].dim_param = name


def _check_operators(model: object) -> None:
    """Raises RuntimeError for NMS and for operators outside the ONNX standard."""
    own = {f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")}
    nms = {n.op_type for n in model.graph.node if n.op_type == "NonMaxSuppression"}
    if own or nms or model.functions:
        raise RuntimeError(f"the graph has operators that it must not have: {sorted(own | nms)}")


def _write_program(network: ExportableOneNet, metadata: Metadata, path: str) -> None:
    # Maps of one cell would be specialised: the coarsest map needs at least two
    strides = [network.backbone.output_shape()[name].stride for name in network.in_features]
    side = metadata.size_divisibility
    shapes = _dynamic_shapes(metadata, least_cells=max([*strides, side]) // side + 1)
    program = torch.export.export(network, _example(metadata), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, path, extra_files={_METADATA_FILE: json.dumps(metadata.entries())})


def _write_torchscript(network: ExportableOneNet, metadata: Metadata, path: str) -> None:
    traced = torch.jit.trace(network, _example(metadata), check_trace=False)
    torch.jit.save(traced, path, _extra_files={_METADATA_FILE: json.dumps(metadata.entries())})
