"""Export of a checkpoint to a file, which is kept only if it passes the parity check."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor, nn

from ..data.sample_images import load_sample_images
from ..engine import Trainer
from ..engine.class_names import check_class_names
from ..evaluation import load_thresholds, weights_digest
from ..modeling.meta_arch import OneNet
from ..predictor import Predictor
from ..utils.errors import ConfigError
from .formats import FORMATS, open_exported, write_exported
from .metadata import Metadata
from .network import ExportableOneNet
from .parity import Difference, ExportedDetector, compare_on_images, pad_batch
from .quantization import quantize

__all__ = ["ExportOptions", "average_precisions", "check_output", "export_checked"]

_SCALES = (0.6, 0.8, 1.0, 1.25, 1.5)  # of INPUT.MIN_SIZE_TEST, for the check
_CALIBRATION_IMAGES = 100
# Box, score, AP: rounding in float32; differences that are acceptable in float16 and int8, where a
# higher AP is none. An int8 file is a float32 file that has passed.
_TOLERANCES = {
    "float32": (1e-3, 1e-4, 0.1),
    "float16": (5e-3, 1e-2, 0.3),
    "int8": (1e-3, 1e-4, 0.5),
}


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how it is checked.

    Attributes:
        precision: of backbone and head: "float32", "float16", or "int8" (ONNX only).
        calibration: folder with images for int8.
        images: folder with images for the check; None for the first of DATASETS.TEST.
        evaluate: whether to compare the AP on DATASETS.TEST as well; in float16 it then decides
            alone, since near ties between candidates may go to others and move single detections.
        thresholds: file with calibrated thresholds; "none"; or "auto", those that an evaluation of
            these weights left beside them.
        box_tolerance: share of an image's longer side; None for 0.001, in float16 0.005.
        score_tolerance: None for 0.0001, in float16 0.01.
        ap_tolerance: None for 0.1; in float16 0.3 and in int8 0.5, of loss.
    """

    precision: str = "float32"
    calibration: str | None = None
    images: str | None = None
    evaluate: bool = False
    thresholds: str = "auto"
    box_tolerance: float | None = None
    score_tolerance: float | None = None
    ap_tolerance: float | None = None

    @property
    def tolerances(self) -> tuple[float, float, float]:
        """Of boxes, scores and AP."""
        given = (self.box_tolerance, self.score_tolerance, self.ap_tolerance)
        defaults = _TOLERANCES[self.precision]
        return tuple(b if a is None else a for a, b in zip(given, defaults, strict=True))


def export_checked(cfg: CfgNode, weights: str, output: Path, options: ExportOptions) -> None:
    """Exports a checkpoint, compares the file with the model, and prints the differences.

    Args:
        cfg: of :func:`onenet.predictor.load_predictor_config`, on the CPU.
        weights: a checkpoint; "" for MODEL.WEIGHTS.
        output: the file, with an ending in ``FORMATS``. It is written if the check passes.
        options: see there.

    Raises:
        ConfigError: the model cannot be exported, or the file differs from it.
        DataError: there are no images for the check.
    """
    _check_exportable(cfg, options)
    samples = itertools.cycle(load_sample_images(cfg, options.images, len(_SCALES)))
    images = [_resize(image, cfg, scale) for scale, image in zip(_SCALES, samples, strict=False)]
    calibration = _load_calibration(cfg, options)
    predictor = Predictor(cfg, weights)
    model, names = predictor.model, predictor.class_names
    thresholds = _thresholds(predictor, options.thresholds)
    metadata = Metadata.from_model(cfg, model, names, thresholds, options.precision)
    if metadata.category_ids is None:
        print("Without category ids: no dataset at hand has ids of its own for these classes.")
    # Under another name until the parity check has passed
    unproven = output.with_name(f".unproven-{os.getpid()}{output.suffix}")
    try:
        print(f"Exporting {weights} as {FORMATS[output.suffix]} ...", flush=True)
        network = ExportableOneNet(model, half=options.precision == "float16")
        write_exported(network, metadata, unproven)
        exported, failures = _open(unproven, metadata)
        box, score, ap = options.tolerances
        differences = _check_parity(model, exported, images, box, score)
        if options.precision != "float16":
            failures += differences
        elif differences and not options.evaluate:
            failures += [*differences, "--evaluate lets its AP decide"]
        elif differences:
            print(f"In float16 {'; '.join(differences)}. Its AP decides.")
        if options.precision == "int8" and not failures:
            exported, failures = _quantize(unproven, metadata, calibration)
        if options.evaluate or options.precision == "int8":
            check_class_names(cfg, weights, names)
            failures += _compare_ap(cfg, model, exported, ap, options.precision != "float32")
        if failures:
            raise ConfigError(f"{output} was not written: {'; '.join(failures)}.")
        os.replace(unproven, output)
    finally:
        unproven.unlink(missing_ok=True)
    size = output.stat().st_size / 2**20
    known = "thresholds are calibrated" if thresholds else "no calibrated thresholds"
    print(f"Parity check passed: {output}, {size:.1f} MiB, {metadata.precision}, {known}.")


def _load_calibration(cfg: CfgNode, options: ExportOptions) -> list[Tensor]:
    """Images for int8, resized as in inference: (3, h, w) uint8 each."""
    if options.precision != "int8":
        return []
    images = load_sample_images(
        cfg, options.calibration, _CALIBRATION_IMAGES, option="--calibration"
    )
    return [_resize(image, cfg, 1.0) for image in images]


def _open(path: Path, metadata: Metadata) -> tuple[ExportedDetector, list[str]]:
    """The file's detector, and what is wrong with its metadata."""
    run, entries = open_exported(path)
    failures = [] if entries == metadata.entries() else ["its metadata is not what was written"]
    return ExportedDetector(run, metadata.size_divisibility), failures


def _quantize(
    path: Path, metadata: Metadata, images: list[Tensor]
) -> tuple[ExportedDetector, list[str]]:
    """Quantises a file in place; as :func:`_open`."""
    print(f"Quantising with {len(images)} images ...", flush=True)
    batches = [pad_batch([image], metadata.size_divisibility) for image in images]
    quantised, count = quantize(path, path, metadata, batches)
    print(f"{quantised} of {count} convolutions are in int8.")
    return _open(path, metadata)


def _check_exportable(cfg: CfgNode, options: ExportOptions) -> None:
    if cfg.MODEL.META_ARCHITECTURE != "OneNet":
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; only OneNet is exported:"
            " a detector with NMS is more than its network."
        )
    if cfg.MODEL.ONENET.NMS_TEST:
        raise ConfigError(
            "MODEL.ONENET.NMS_TEST is True; exported files have no NMS: set it False."
        )
    if not cfg.DATASETS.TEST and (options.evaluate or options.precision == "int8"):
        option = "--evaluate" if options.evaluate else "--int8"
        raise ConfigError(f"{option} needs DATASETS.TEST, which is empty or not there.")


def _thresholds(predictor: Predictor, choice: str) -> list[float] | None:
    """See :class:`ExportOptions`."""
    if choice == "auto":
        print(predictor.calibration_note)
        return predictor.calibrated
    if choice == "none":
        return None
    return load_thresholds(choice, predictor.class_names, weights_digest(predictor.model))


def _resize(image: np.ndarray, cfg: CfgNode, scale: float) -> Tensor:
    """Resizes an image to a multiple of the test size: (3, h, w) uint8."""
    size = round((cfg.INPUT.MIN_SIZE_TEST or min(image.shape[:2])) * scale)
    transform = T.ResizeShortestEdge(size, round(cfg.INPUT.MAX_SIZE_TEST * scale))
    resized = transform.get_transform(image).apply_image(image)
    return torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def _check_parity(
    model: OneNet,
    exported: ExportedDetector,
    images: list[Tensor],
    box_tolerance: float,
    score_tolerance: float,
) -> list[str]:
    """Prints the differences between file and model; returns those beyond the tolerances."""
    total = Difference()
    print("images                              largest difference: box / longer side   score")
    for batch in [*([image] for image in images), images[:3]]:
        difference = compare_on_images(model, exported, batch, score_tolerance)
        total = total.join(difference)
        sizes = ", ".join(f"{image.shape[2]}x{image.shape[1]}" for image in batch)
        print(f"{sizes:<40}{difference.box:>30.1e}{difference.score:>10.1e}", flush=True)
    failures = []
    if not total.box <= box_tolerance:
        failures.append(f"boxes differ by {total.box:.1e} of the image ({box_tolerance} allowed)")
    if not total.score <= score_tolerance:
        failures.append(f"scores differ by {total.score:.1e} ({score_tolerance} allowed)")
    if total.unmatched:
        failures.append(f"{total.unmatched} detections have no partner")
    print(f"{total.compared} detections compared")
    if not total.compared:
        failures.append("nothing was compared: the model finds nothing, or all with one score")
    return failures


def _compare_ap(
    cfg: CfgNode, model: OneNet, exported: ExportedDetector, tolerance: float, only_loss: bool
) -> list[str]:
    """Prints the AP of both; returns differences, or only losses, beyond the tolerance."""
    failures = []
    ours, theirs = average_precisions(cfg, model), average_precisions(cfg, exported)
    for name, ap in ours.items():
        print(f"AP on {name}: {ap:.2f} in torch, {theirs[name]:.2f} from the file")
        difference = ap - theirs[name] if only_loss else abs(ap - theirs[name])
        if not difference <= tolerance:  # also for nan
            failures.append(f"AP on {name} differs by {difference:.2f} ({tolerance} allowed)")
    return failures


def average_precisions(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """AP, else AP50, on each of DATASETS.TEST; nan where there is neither.

    Args:
        cfg: with the test sets.
        model: a OneNet, or an :class:`onenet.export.ExportedDetector`.
    """
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.END_TO_END.ENABLED = False
    with tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR:
        results = Trainer.test(cfg, model)
    if len(cfg.DATASETS.TEST) == 1:
        results = {cfg.DATASETS.TEST[0]: results}
    return {name: _ap(results[name]) for name in cfg.DATASETS.TEST}


def _ap(tasks: dict[str, dict[str, float]]) -> float:
    """AP, else AP50, else nan."""
    for metrics in tasks.values():
        for metric in ("AP", "AP50"):
            if metric in metrics:
                return metrics[metric]
    return float("nan")


def check_output(path: Path) -> None:
    """Raises ConfigError if no exported file can be written there."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"--output: {path} has to end in {', '.join(FORMATS)}.")
    if path.is_dir():
        raise ConfigError(f"--output: {path} is a folder.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"--output: there is no folder '{path.parent}'.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--output: cannot write in {path.parent} ({error.strerror}).") from error
