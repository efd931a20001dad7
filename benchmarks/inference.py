#!/usr/bin/env python
"""Times detectors in several runtimes, network and post-processing apart, against FCOS with NMS.

python benchmarks/inference.py CONFIG [CONFIG ...] --weights CONFIG=model_final.pth [...] \\
    --sizes 128 --batch 1 8 --runtimes eager compile onnxruntime openvino --output output/benchmark

Without configs: OneNet, the recommended OneNet, FCOS and RetinaNet of configs/digits. A detector
without --weights has random ones; then its post-processing is not that of a trained detector, which
the output says. The images are real: DATASETS.TEST of the first config, or a folder's. With "eager"
among the runtimes the parts of the models' own calls follow, from preprocessing to NMS (not with
--half). --output gets benchmark.md, which is also printed, and benchmark.json, which has every
single measurement.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import (
    RUNTIMES,
    Detector,
    Setting,
    build_detector,
    count_candidates,
    describe_detector,
    environment,
    keys_of,
    load_batches,
    measure,
    prepare,
    results,
    synchronizer,
    time_parts,
    to_markdown,
)
from onenet.utils.errors import ConfigError, exit_with_one_sentence

DIGITS = Path("configs/digits")
DEFAULT_CONFIGS = [
    str(DIGITS / f"{name}_R18_FPN.yaml")
    for name in ("onenet_fcos", "recommended", "baseline_fcos", "baseline_retinanet")
]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", help="(default: four of configs/digits)")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="CONFIG=FILE",
        help="checkpoints of the configs named (default: random weights)",
    )
    parser.add_argument(
        "--reference", help="config that ratios refer to (default: the first one of FCOSBaseline)"
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
    parser.add_argument("--rounds", type=int, default=30, help="that count (default: 30)")
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
        help="time NMS with a score threshold of 0 too, its dearest case; random weights imply it",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar=("KEY", "VALUE"),
        help="overrides for all configs: KEY value KEY value ...",
    )
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"))
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
    if args.output.exists() and not args.output.is_dir():
        raise ConfigError(f"--output: {args.output} is a file; name a folder.")


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


def choose_reference(detectors: Sequence[Detector], config: str | None) -> Detector:
    """The detector that ratios refer to."""
    if config is not None:
        candidates = [x for x in detectors if x.config == config]
    else:
        candidates = [x for x in detectors if x.cfg.MODEL.META_ARCHITECTURE == "FCOSBaseline"]
    if not candidates:
        raise ConfigError(
            "--reference: "
            + (f"'{config}' is not" if config else "no FCOSBaseline is")
            + " among the configs; name one of them."
        )
    return candidates[0]


def check_sizes(sizes: Sequence[tuple[int, int]], detectors: Sequence[Detector]) -> None:
    """Raises ConfigError where an image would need padding."""
    side = max(max(x.model.backbone.size_divisibility, 1) for x in detectors)
    for size in sizes:
        if any(x % side for x in size):
            raise ConfigError(f"--sizes: {size[0]}x{size[1]} is no multiple of {side} pixels.")


def count_all(
    detectors: Sequence[Detector], batches: Sequence[Tensor], every_candidate: bool
) -> dict[str, list[int]]:
    """Boxes that enter NMS, for each image, of the detectors that have it."""
    counts = {}
    for detector in detectors:
        if detector.has_nms:
            counts[detector.name] = count_candidates(detector, batches)
            if every_candidate:
                name = f"{detector.name} with score threshold 0"
                counts[name] = count_candidates(detector, batches, every_candidate=True)
    return counts


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Builds, prepares and times all; see common.report."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    threads = torch.get_num_threads()
    sizes = [parse_size(text) for text in args.sizes]
    detectors = build_detectors(args)
    check_sizes(sizes, detectors)
    reference = choose_reference(detectors, args.reference).name
    every_candidate = args.every_candidate or any(x.has_nms and not x.weights for x in detectors)
    order = keys_of(detectors, args.runtimes, every_candidate)
    load = os.getloadavg()[0]
    synchronize = synchronizer(args.device)
    settings = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            for batch in args.batch:
                setting = Setting(size, batch, threads, args.device, args.half)
                images = load_batches(detectors[0].cfg, args.images, size, batch)
                batches = [x.to(args.device) for x in images]
                print(f"{size[0]}x{size[1]}, batch {batch}: compiling ...", file=sys.stderr)
                subjects, failures = prepare(
                    detectors, args.runtimes, setting, batches[0], Path(folder), every_candidate
                )
                print(f"timing {args.rounds} rounds ...", file=sys.stderr)
                with torch.inference_mode():
                    times = measure(
                        subjects,
                        batches,
                        args.rounds,
                        args.warm_up,
                        synchronize=synchronize,
                    )
                counts = count_all(detectors, batches, every_candidate)
                parts = {}
                if "eager" in args.runtimes and not args.half:  # the models are not all float16
                    print("timing parts ...", file=sys.stderr)
                    models = {x.name: x.model for x in detectors}
                    parts = time_parts(models, batches, args.rounds, args.warm_up, synchronize)
                settings.append(results(times, failures, order, setting, reference, counts, parts))
    return {
        "command": shlex.join(["python", *sys.argv]),
        "environment": environment(args.device, threads, args.half),
        "load": [load, os.getloadavg()[0]],
        "rounds": args.rounds,
        "warm_up": args.warm_up,
        "reference": reference,
        "detectors": [describe_detector(x) for x in detectors],
        "settings": settings,
    }


def main() -> None:
    args = parse_arguments()
    args.configs = args.configs or DEFAULT_CONFIGS
    logging.disable(logging.WARNING)
    with exit_with_one_sentence():
        check(args)
        report = run(args)
    text = to_markdown(report)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "benchmark.md").write_text(text, encoding="utf-8")
    (args.output / "benchmark.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
