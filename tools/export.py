#!/usr/bin/env python
"""Exports a trained OneNet, with a parity check against the PyTorch model.

python tools/export.py --config-file configs/digits/recommended_R18_FPN.yaml \\
    --weights output/model_final.pth --output model.onnx [--evaluate] [KEY value ...]

The ending selects the format: .onnx (ONNX, for ONNX Runtime, OpenVINO, TensorRT, onenet_runtime),
.pt2 (torch.export), .ts (TorchScript, for C++). The file includes normalisation, top-k and box
decoding; there is no NMS. File and model are compared on real images of five sizes, one at a time
and three in a batch; if they differ by more than the tolerances, no file is written.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor

from onenet.data.sample_images import load_sample_images
from onenet.engine import Trainer
from onenet.engine.class_names import check_class_names
from onenet.evaluation import load_thresholds, weights_digest
from onenet.export import (
    FORMATS,
    Difference,
    ExportableOneNet,
    ExportedDetector,
    Metadata,
    compare_on_images,
    open_exported,
    write_exported,
)
from onenet.modeling.meta_arch import OneNet
from onenet.predictor import Predictor, load_predictor_config
from onenet.utils.errors import ConfigError, exit_with_one_sentence

SCALES = (0.6, 0.8, 1.0, 1.25, 1.5)  # of INPUT.MIN_SIZE_TEST, for the check
# Box, score, AP: rounding in float32; differences that are acceptable in float16
TOLERANCES = {"float32": (1e-3, 1e-4, 0.1), "float16": (5e-3, 1e-2, 0.3)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="a checkpoint of train_net.py")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="file that ends in " + ", ".join(f"{k} ({v})" for k, v in FORMATS.items()),
    )
    parser.add_argument("--half", action="store_true", help="float16 in backbone and head")
    parser.add_argument(
        "--images", help="folder with images for the check (default: the first of DATASETS.TEST)"
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="compare the AP on DATASETS.TEST as well"
    )
    parser.add_argument(
        "--thresholds",
        default="auto",
        help="file with calibrated thresholds, 'none', or 'auto': the ones that an evaluation of"
        " these weights left beside them (default)",
    )
    parser.add_argument(
        "--box-tolerance",
        type=float,
        help="share of an image's longer side (default: 0.001; in float16 0.005)",
    )
    parser.add_argument("--score-tolerance", type=float, help="(default: 0.0001; in float16 0.01)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY value ...")
    return parser.parse_args()


def resize(image: np.ndarray, cfg: CfgNode, scale: float) -> Tensor:
    """Resizes an image to a multiple of the test size: (3, h, w) uint8."""
    size = round((cfg.INPUT.MIN_SIZE_TEST or min(image.shape[:2])) * scale)
    transform = T.ResizeShortestEdge(size, round(cfg.INPUT.MAX_SIZE_TEST * scale))
    resized = transform.get_transform(image).apply_image(image)
    return torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def check_parity(
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


def compare_ap(
    cfg: CfgNode, model: OneNet, exported: ExportedDetector, tolerance: float
) -> list[str]:
    """Prints the AP of both; returns differences beyond the tolerance."""
    failures = []
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.END_TO_END.ENABLED = False
    with tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR:
        ours, theirs = Trainer.test(cfg, model), Trainer.test(cfg, exported)
    if len(cfg.DATASETS.TEST) == 1:
        ours, theirs = ({cfg.DATASETS.TEST[0]: x} for x in (ours, theirs))
    for name in cfg.DATASETS.TEST:
        a, b = (_ap(results[name]) for results in (ours, theirs))
        print(f"AP on {name}: {a:.2f} in torch, {b:.2f} from the file")
        if not abs(a - b) <= tolerance:  # also for nan
            failures.append(f"AP on {name} differs by {abs(a - b):.2f} ({tolerance} allowed)")
    return failures


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


def main() -> None:
    args = parse_arguments()
    check_output(args.output)
    cfg = load_predictor_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    if cfg.MODEL.META_ARCHITECTURE != "OneNet":
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; only OneNet is exported:"
            " a detector with NMS is more than its network."
        )
    if cfg.MODEL.ONENET.NMS_TEST:
        raise ConfigError(
            "MODEL.ONENET.NMS_TEST is True; exported files have no NMS: set it False."
        )
    if args.evaluate and not cfg.DATASETS.TEST:
        raise ConfigError("--evaluate needs DATASETS.TEST, which is empty or not there.")
    samples = itertools.cycle(load_sample_images(cfg, args.images, len(SCALES)))
    images = [resize(image, cfg, scale) for scale, image in zip(SCALES, samples, strict=False)]
    predictor = Predictor(cfg, args.weights)
    model, names, thresholds = predictor.model, predictor.class_names, predictor.calibrated
    if args.thresholds == "auto":
        print(predictor.calibration_note)
    elif args.thresholds == "none":
        thresholds = None
    else:
        thresholds = load_thresholds(args.thresholds, names, weights_digest(model))
    metadata = Metadata.from_model(cfg, model, names, thresholds, args.half)
    if metadata.category_ids is None:
        print("Without the dataset's ids of the classes: no dataset with these classes is at hand.")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs `finally`, as Ctrl-C does
    # Under another name until the parity check has passed
    unproven = args.output.with_name(f".unproven-{os.getpid()}{args.output.suffix}")
    try:
        print(f"Exporting {args.weights} as {FORMATS[args.output.suffix]} ...", flush=True)
        write_exported(ExportableOneNet(model, half=args.half), metadata, unproven)
        run, entries = open_exported(unproven)
        exported = ExportedDetector(run, metadata.size_divisibility)
        box, score, ap = TOLERANCES[metadata.precision]
        if args.box_tolerance is not None:
            box = args.box_tolerance
        if args.score_tolerance is not None:
            score = args.score_tolerance
        failures = check_parity(model, exported, images, box, score)
        if entries != metadata.entries():
            failures.append("its metadata is not what was written")
        if args.evaluate:
            check_class_names(cfg, args.weights, names)
            failures += compare_ap(cfg, model, exported, ap)
        if failures:
            sys.exit(f"error: {args.output} was not written: {'; '.join(failures)}.")
        os.replace(unproven, args.output)
    finally:
        unproven.unlink(missing_ok=True)
    size = args.output.stat().st_size / 2**20
    known = "thresholds are calibrated" if thresholds else "no calibrated thresholds"
    print(f"Parity check passed: {args.output}, {size:.1f} MiB, {metadata.precision}, {known}.")


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
