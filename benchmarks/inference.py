#!/usr/bin/env python
"""Times detectors in several runtimes, network and post-processing apart, against FCOS with NMS.

python benchmarks/inference.py CONFIG [CONFIG ...] --weights CONFIG=model_final.pth [...] \\
    --sizes 128 --batch 1 8 --runtimes eager compile onnxruntime openvino

Without configs: OneNet, the recommended OneNet and FCOS of configs/digits. Ratios refer to the
first FCOS among the configs. The images are real: DATASETS.TEST of the first config, or a folder's,
stretched to the size.

* network: from the uint8 batch in memory to the raw outputs of the last convolutions.
* post-processing: from there to the detections. OneNet: top-k, boxes, rescoring; FCOS, RetinaNet:
  score threshold, boxes, class-wise NMS. It is the model's own Python code, whatever runs the
  network; OneNet's is also timed in the runtime's graph.
* Not timed: reading and resizing the image, copying it to the device, compiling, exporting.

NMS costs what its candidates are: without --weights, scores are all alike, and nearly all boxes or
none pass the threshold. With "eager" among the runtimes a second table has the parts of the models'
own calls, from preprocessing to NMS (not with --half).
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import (
    EVERY_CANDIDATE,
    NETWORK,
    RUNTIMES,
    Detector,
    Setting,
    build_detector,
    count_candidates,
    inference_rows,
    keys_of,
    load_batches,
    make_parser,
    measure,
    parts_rows,
    prepare,
    record,
    synchronizer,
    time_parts,
)
from onenet.utils.errors import ConfigError, exit_with_one_sentence

DIGITS = Path("configs/digits")
DEFAULT_CONFIGS = [
    str(DIGITS / f"{name}_R18_FPN.yaml") for name in ("onenet_fcos", "recommended", "baseline_fcos")
]


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("configs", nargs="*", help="(default: three of configs/digits)")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="CONFIG=FILE",
        help="checkpoints of the configs named (default: random weights)",
    )
    parser.add_argument("--images", help="folder of images (default: DATASETS.TEST)")
    parser.add_argument(
        "--sizes", nargs="+", default=["128"], help="pixels: a side, or HEIGHTxWIDTH (default: 128)"
    )
    parser.add_argument(
        "--batch", nargs="+", type=int, default=[1, 8], help="images at a time (default: 1 8)"
    )
    parser.add_argument(
        "--runtimes",
        nargs="+",
        choices=RUNTIMES,
        default=list(RUNTIMES),
        help="(default: all); the last two run on the CPU only",
    )
    parser.add_argument("--rounds", type=int, default=15, help="that count (default: 15)")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds before (default: 3)")
    parser.add_argument(
        "--threads", type=int, help="of each runtime on the CPU (default: torch's choice)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--half", action="store_true", help="float16 in backbone and head; with --device cuda"
    )
    parser.add_argument(
        "--every-candidate",
        action="store_true",
        help="time NMS with a score threshold of 0 too, its dearest case",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar=("KEY", "VALUE"),
        help="overrides for all configs: KEY value KEY value ...",
    )
    return parser.parse_args()


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "128" or "800x1344"."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ConfigError(f"--sizes: '{text}' is no size; write 128, or HEIGHTxWIDTH as 800x1344.")
    return int(sides[0]), int(sides[-1])


def parse_weights(entries: Sequence[str], configs: Sequence[str]) -> dict[str, str]:
    """Checkpoint by config."""
    weights = {}
    for entry in entries:
        config, equals, file = entry.partition("=")
        if not equals or config not in configs:
            raise ConfigError(
                f"--weights: '{entry}' is not CONFIG=FILE with one of the configs"
                f" {', '.join(configs)}."
            )
        weights[config] = file
    return weights


def names_of(configs: Sequence[str]) -> list[str]:
    """The files' names, or where these are not unique their paths."""
    stems = [Path(config).stem for config in configs]
    return stems if len(set(stems)) == len(stems) else list(configs)


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError for values that no run can have."""
    if len(set(args.configs)) != len(args.configs):
        raise ConfigError("A config is named twice; name each once.")
    for name, value in (("--rounds", args.rounds), ("--batch", min(args.batch))):
        if value < 1:
            raise ConfigError(f"{name} is {value}; give 1 or more.")
    if args.warm_up < 0:
        raise ConfigError(f"--warm-up is {args.warm_up}; give 0 or more.")
    if args.threads is not None and args.threads < 1:
        raise ConfigError(f"--threads is {args.threads}; give 1 or more.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU; take --device cpu.")
    if args.half and args.device != "cuda":
        raise ConfigError("--half needs --device cuda: on a CPU float16 is no faster.")


def build_detectors(args: argparse.Namespace) -> list[Detector]:
    """All detectors; they take the same images."""
    weights = parse_weights(args.weights, args.configs)
    detectors = []
    for name, config in zip(names_of(args.configs), args.configs, strict=True):
        torch.manual_seed(0)
        detectors.append(
            build_detector(name, config, weights.get(config, ""), args.set, args.device, args.half)
        )
    formats = {detector.cfg.INPUT.FORMAT for detector in detectors}
    if len(formats) > 1:
        raise ConfigError(f"The configs' INPUT.FORMAT differ ({', '.join(sorted(formats))}).")
    return detectors


def find_reference(detectors: Sequence[Detector]) -> Detector:
    """The detector that ratios refer to."""
    for detector in detectors:
        if detector.cfg.MODEL.META_ARCHITECTURE == "FCOSBaseline":
            return detector
    raise ConfigError("No FCOSBaseline is among the configs, to which ratios refer; add one.")


def check_sizes(sizes: Sequence[tuple[int, int]], detectors: Sequence[Detector]) -> None:
    """Raises ConfigError where an image would need padding."""
    side = max(max(x.model.backbone.size_divisibility, 1) for x in detectors)
    for size in sizes:
        if any(x % side for x in size):
            raise ConfigError(f"--sizes: {size[0]}x{size[1]} is no multiple of {side} pixels.")


def count_all(
    detectors: Sequence[Detector], batches: Sequence[Tensor], every_candidate: bool
) -> dict[tuple[str, str], list[int]]:
    """Boxes that enter NMS, for each image, by detector and graph, where there is NMS."""
    counts = {}
    for detector in detectors:
        if detector.has_nms:
            counts[detector.name, NETWORK] = count_candidates(detector, batches)
            if every_candidate:
                counts[detector.name, EVERY_CANDIDATE] = count_candidates(detector, batches, True)
    return counts


def run(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Builds, prepares and times all: rows of detectors, and of the parts of their calls."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    threads = torch.get_num_threads()
    sizes = [parse_size(text) for text in args.sizes]
    detectors = build_detectors(args)
    check_sizes(sizes, detectors)
    reference = find_reference(detectors).name
    order = keys_of(detectors, args.runtimes, args.every_candidate)
    random_weights = [x.name for x in detectors if not x.weights]
    synchronize = synchronizer(args.device)
    rows, parts = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            for batch in args.batch:
                setting = Setting(size, batch, threads, args.device, args.half)
                images = load_batches(detectors[0].cfg, args.images, size, batch)
                batches = [x.to(args.device) for x in images]
                print(f"{size[0]}x{size[1]}, batch {batch}: compiling ...", file=sys.stderr)
                subjects, failures = prepare(
                    *(detectors, args.runtimes, setting, batches[0], Path(folder)),
                    args.every_candidate,
                )
                print(f"timing {args.rounds} rounds ...", file=sys.stderr)
                with torch.inference_mode():
                    times = measure(
                        subjects, batches, args.rounds, args.warm_up, synchronize=synchronize
                    )
                counts = count_all(detectors, batches, args.every_candidate)
                rows += inference_rows(
                    times, failures, order, setting, reference, counts, random_weights
                )
                if "eager" in args.runtimes and not args.half:  # the models are not all float16
                    print("timing parts ...", file=sys.stderr)
                    models = {x.name: x.model for x in detectors}
                    found = time_parts(models, batches, args.rounds, args.warm_up, synchronize)
                    parts += parts_rows(found, setting)
    return rows, parts


def main() -> None:
    args = parse_arguments()
    args.configs = args.configs or DEFAULT_CONFIGS
    logging.disable(logging.WARNING)
    with exit_with_one_sentence():
        check(args)
        rows, parts = run(args)
        record(args.json, "inference", rows, rounds=args.rounds, parts=parts)


if __name__ == "__main__":
    main()
