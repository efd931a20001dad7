"""Detectors as subjects to be timed, in each runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from onenet.export import ExportableOneNet, Metadata, write_exported

from .engines import onnxruntime_opener, openvino_opener
from .stages import Detector, Postprocess, without_threshold
from .timing import Subject

__all__ = [
    "COMPLETE",
    "EVERY_CANDIDATE",
    "NETWORK",
    "RUNTIMES",
    "Key",
    "Setting",
    "keys_of",
    "prepare",
]

EAGER, COMPILE, ONNXRUNTIME, OPENVINO = "eager", "compile", "onnxruntime", "openvino"
RUNTIMES = (EAGER, COMPILE, ONNXRUNTIME, OPENVINO)
NETWORK = "network"
"""The runtime has the network; the post-processing is the model's own, in torch."""
COMPLETE = "complete"
"""The runtime has all of it, from pixels to boxes; OneNet only."""
EVERY_CANDIDATE = "every candidate"
"""As :data:`NETWORK`, but without a score threshold, so that as much as can be goes to NMS."""

_OPSET = 20
_MAX_BATCH, _MAX_SIDE = 1024, 16384
_SCORE_TOLERANCE = 0.02


class Key(NamedTuple):
    """Names what is timed.

    Attributes:
        detector: its name.
        runtime: one of :data:`RUNTIMES`.
        graph: what that has to do: :data:`NETWORK`, :data:`COMPLETE` or :data:`EVERY_CANDIDATE`.
    """

    detector: str
    runtime: str
    graph: str


@dataclass(frozen=True)
class Setting:
    """What is the same for all that are compared.

    Attributes:
        size: height and width of the images in pixels.
        batch: images at a time.
        threads: of each runtime, on the CPU.
        device: "cpu" or "cuda".
        half: whether backbone and head compute in float16; on "cuda" only.
    """

    size: tuple[int, int]
    batch: int
    threads: int
    device: str = "cpu"
    half: bool = False


def keys_of(
    detectors: Sequence[Detector], runtimes: Sequence[str], every_candidate: bool
) -> list[Key]:
    """All that is timed, in the order of the tables.

    Args:
        detectors: all.
        runtimes: some of :data:`RUNTIMES`.
        every_candidate: whether, in eager mode, NMS is also timed with every candidate.
    """
    keys = []
    for runtime in runtimes:
        for detector in detectors:
            keys.append(Key(detector.name, runtime, NETWORK))
            if not detector.has_nms and runtime != EAGER:
                keys.append(Key(detector.name, runtime, COMPLETE))
            if detector.has_nms and runtime == EAGER and every_candidate:
                keys.append(Key(detector.name, runtime, EVERY_CANDIDATE))
    return keys


@torch.inference_mode()
def prepare(
    detectors: Sequence[Detector],
    runtimes: Sequence[str],
    setting: Setting,
    batch: Tensor,
    folder: Path,
    every_candidate: bool = False,
) -> tuple[dict[Key, Subject], dict[Key, str]]:
    """Compiles and exports, and checks that every runtime finds what eager mode finds.

    Args:
        detectors: on the setting's device.
        runtimes: some of :data:`RUNTIMES`.
        setting: sizes, threads, precision.
        batch: (N, 3, H, W) uint8 on the device: what is tried out.
        folder: for exported files; those of an earlier call are used again.
        every_candidate: see :func:`keys_of`.

    Returns:
        What can be timed; and for the rest a reason.
    """
    torch.compiler.reset()  # else the shapes of earlier settings count towards dynamo's limit
    subjects: dict[Key, Subject] = {}
    failures: dict[Key, str] = {}
    by_name = {detector.name: detector for detector in detectors}
    for key in keys_of(detectors, runtimes, every_candidate):
        detector = by_name[key.detector]
        try:
            subject = _build(detector, key, setting, folder)
            if key.runtime != EAGER:
                _check_agreement(subject, _eager(detector, detector.model, setting), batch)
            subjects[key] = subject
        except ImportError as error:
            failures[key] = f"not installed: {error.name}"
        except Exception as error:  # a compiler or runtime raises anything; the others go on
            failures[key] = f"failed: {_reason(error)}"
    return subjects, failures


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 150 else text[:150] + " ..."


def _build(detector: Detector, key: Key, setting: Setting, folder: Path) -> Subject:
    if key.runtime == EAGER:
        model = detector.model
        if key.graph == EVERY_CANDIDATE:
            model = without_threshold(model)
        return _eager(detector, model, setting)
    if key.runtime == COMPILE:
        return _compiled(detector, key, setting)
    if setting.device != "cpu":
        raise RuntimeError(f"{key.runtime} is timed on the CPU only")
    # Where the runtime itself is missing, that is to be said before the export's packages are.
    opener = {ONNXRUNTIME: onnxruntime_opener, OPENVINO: openvino_opener}[key.runtime]()
    file = folder / f"{key.detector.replace('/', '_')}_{key.graph}.onnx"
    height, width = setting.size
    if key.graph == COMPLETE:
        if not file.exists():
            metadata = _metadata(detector)
            with torch.inference_mode(False):
                write_exported(ExportableOneNet(detector.model), metadata, file)
        shapes = [(setting.batch, height, width, 3), (setting.batch, 2)]
        run = opener(file, shapes, setting.threads)
        return Subject(_as_arrays, lambda arrays: run(*arrays))
    if not file.exists():
        with torch.inference_mode(False):
            _export_network(detector, file)
    run = opener(file, [(setting.batch, 3, height, width)], setting.threads)
    return Subject(
        Tensor.numpy,
        lambda images: [torch.from_numpy(x) for x in run(images)],
        Postprocess(detector.model, setting.size),
    )


def _metadata(detector: Detector) -> Metadata:
    """What a file has to hold; nobody reads it here, hence no class names."""
    names = [str(i) for i in range(detector.model.head.num_classes)]
    return Metadata.from_model(detector.cfg, detector.model, names, thresholds=None)


def _eager(detector: Detector, model: nn.Module, setting: Setting) -> Subject:
    return Subject(_same, detector.network, Postprocess(model, setting.size))


def _compiled(detector: Detector, key: Key, setting: Setting) -> Subject:
    # fullgraph: else what does not compile would silently run in eager mode
    if key.graph == NETWORK:
        network = torch.compile(detector.network, fullgraph=True, dynamic=False)
        return Subject(_same, network, Postprocess(detector.model, setting.size))
    exportable = ExportableOneNet(detector.model, setting.half).to(setting.device)
    complete = torch.compile(exportable, fullgraph=True, dynamic=False)
    return Subject(_with_sizes, lambda inputs: complete(*inputs))


def _same(batch: Tensor) -> Tensor:
    return batch


def _with_sizes(batch: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs of ExportableOneNet; no image has padding."""
    sizes = torch.tensor([batch.shape[2:]] * len(batch), device=batch.device)
    return batch.permute(0, 2, 3, 1).contiguous(), sizes


def _as_arrays(batch: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(x.numpy() for x in _with_sizes(batch))


def _check_agreement(subject: Subject, reference: Subject, batch: Tensor) -> None:
    """Raises RuntimeError if an image's best score is not that of the reference."""
    ours, theirs = (_best_scores(x(batch)) for x in (subject, reference))
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if not difference <= _SCORE_TOLERANCE:
        raise RuntimeError(f"an image's best score is {difference:.3f} off that of eager mode")


def _best_scores(detections: Any) -> list[float]:
    """Each image's best score; 0 without detections."""
    if isinstance(detections[0], Instances):
        return [float(image.scores[0]) if len(image) else 0.0 for image in detections]
    return [float(scores[0]) for scores in detections[1]]


def _export_network(detector: Detector, file: Path) -> None:
    """Writes :class:`common.stages.Network` as ONNX, for any batch and size."""
    import onnxscript  # noqa: F401  (torch's exporter needs it, and would not say so plainly)

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    side = max(detector.model.backbone.size_divisibility, 1)
    # Unlike sides and two images: equal sizes, or one of 1, could be taken for constants.
    example = torch.zeros(2, 3, 4 * side, 5 * side, dtype=torch.uint8)
    axes = {
        0: torch.export.Dim("batch", min=1, max=_MAX_BATCH),
        2: torch.export.Dim("height_cells", min=1, max=_MAX_SIDE // side) * side,
        3: torch.export.Dim("width_cells", min=1, max=_MAX_SIDE // side) * side,
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            detector.network,
            (example,),
            str(file),
            dynamo=True,
            verbose=False,
            external_data=False,
            dynamic_shapes={"images": axes},
            input_names=["images"],
            opset_version=_OPSET,
        )
