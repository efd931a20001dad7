#!/usr/bin/env python
"""Runs all benchmarks, one after another, and puts what they print into one file.

python benchmarks/run.py [--device cpu] [--quick] [--weights CONFIG=FILE ...] [--output FOLDER]

Each has a process of its own. --weights are for inference.py, whose post-processing takes other
times with random ones. --quick takes few rounds, small shapes and the images of BCCD: it
shows that all runs, and its numbers say little. For numbers to compare the machine has to be idle.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def commands(device: str, quick: bool, weights: list[str]) -> list[list[str]]:
    """Scripts and their arguments."""
    on = ["--device", device]
    few = ["--rounds", "2"] if quick else []
    shapes = ["--shapes", "2x2000x10x7", "--no-memory"] if quick else []
    small = ["--batch", "4", "--size", "64"] if quick else []
    bccd = Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "BCCD" / "JPEGImages"
    ready = ["--config", "configs/bccd/recommended_R18_FPN.yaml"]  # nothing has to be made first
    r50 = ["--config", "configs/coco/onenet_fcos_R50_FPN.yaml", "--classes", "80"]
    channels_last = ["--set", "MODEL.ONENET.CHANNELS_LAST", "True"]
    images = ["--runtimes", "eager", "--images", str(bccd)] if quick else []
    if device == "cuda":
        large = ["--batch", "16", "--size", "800", "--objects", "7"]
    else:
        large = ["--batch", "2", "--size", "256", "--objects", "7"]
    more_steps = [
        ["training_step.py", *on, "--config", "configs/digits/onenet_fcos_R18_FPN.yaml"],
        ["training_step.py", *on, "--half"],
        ["training_step.py", *on, *channels_last],
        ["training_step.py", *on, *r50, *large],
        ["training_step.py", *on, *r50, *large, "--half"],
        ["training_step.py", *on, *r50, *large, "--half", *channels_last],
    ]
    listed = [
        ["assignment.py", *on, *shapes, *few],
        ["training_step.py", *on, *small, *few],
        *([] if quick else more_steps),
        ["inference.py", *on, *images, *few, *(["--weights", *weights] if weights else [])],
    ]
    if device == "cpu":
        listed += [
            ["data_loader.py", *([*ready, "--batches", "3", "--rounds", "1"] if quick else [])],
            ["scaling.py", "objects", *(["--objects", "10"] if quick else [])],
            [
                "scaling.py",
                "workers",
                *small,
                *(["--steps", "2", "--rounds", "1"] if quick else []),
            ],
            ["scaling.py", "step", *small, *few],
            ["evaluation.py", *(["--images", "20", *few] if quick else [])],
        ]
    return listed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--weights", nargs="+", default=[], metavar="CONFIG=FILE")
    parser.add_argument("--output", type=Path, default=Path("output/benchmarks"))
    args = parser.parse_args()
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    report = args.output / "benchmarks.md"
    failed = []
    with report.open("w", encoding="utf-8") as file:
        for words in commands(args.device, args.quick, args.weights):
            shown = shlex.join(["python", f"benchmarks/{words[0]}", *words[1:]])
            print(f"{shown} ...", flush=True)
            done = subprocess.run(
                [sys.executable, "-W", "ignore", str(HERE / words[0]), *words[1:]],
                capture_output=True,
                text=True,
                cwd=HERE.parent,
            )
            if done.returncode != 0:
                failed.append(shown)
                print(done.stderr[-2000:], file=sys.stderr)
            text = done.stdout if done.returncode == 0 else f"failed: {done.stderr.strip()[-300:]}"
            file.write(f"## {shown}\n\n{text.strip()}\n\n")
            file.flush()
    print(f"Written: {report}")
    if failed:
        sys.exit(f"error: {len(failed)} of them failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
