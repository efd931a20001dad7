#!/usr/bin/env python
"""Runs all benchmarks on the CPU, one after another, and writes their numbers to json files.

python benchmarks/run.py [--quick] [--weights CONFIG=FILE ...] [--output FOLDER]

Each has a process of its own; FOLDER gets benchmark_NAME.json, which is written anew, and
tools/results_tables.py makes the tables of docs/benchmark.md from them. --weights are for
inference.py, whose post-processing takes other times with random ones. --quick takes few rounds,
small shapes and the images of BCCD: it shows that all runs, and its numbers say little. For numbers
to compare the machine has to be idle. It wants BCCD. On a GPU benchmarks/gpu_suite.py runs them.
docs/benchmark.md was made by

python tools/compare.py --plan configs/compare/digits.yaml    # the weights: seed 1 of FCOS suffices
python benchmarks/run.py --output docs/results --weights \\
    configs/digits/baseline_fcos_R18_FPN.yaml=output/compare/digits/runs/FCOS/seed1/model_final.pth
python tools/results_tables.py docs/benchmark.md
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path


def commands(device: str, quick: bool, weights: list[str]) -> dict[str, list[str]]:
    """Scripts with their arguments, by the NAME of the file that their results go to."""
    gpu = device == "cuda"
    on, half, batches = ("--device cuda", "--half", "1 8") if gpu else ("", "", "1")
    few, small, shapes, bccd = "", "", "", """--set DATASETS.TEST '("bccd_val",)'"""
    runtimes = "eager compile" if gpu else "eager" if quick else "eager onnxruntime openvino"
    r50, r50_size, r50_rounds = "configs/coco/onenet_fcos_R50_FPN.yaml", "800x1344", "--rounds 5"
    r50_runtimes = "eager compile" if gpu else "eager"
    r50_batch = "--batch 16 --size 800" if gpu else "--batch 2 --size 256"
    if quick:
        few, small, shapes = "--rounds 2", "--batch 4 --size 64", "--shapes 2x2000x10x7 --no-memory"
        r50_size, r50_rounds, r50_batch = "64", few, small
    elif not gpu:
        r50_rounds = "--rounds 3 --warm-up 1"
    trained = f"--weights {shlex.join(weights)}" if weights else ""
    r50_step = f"training_step.py {on} --config {r50} --classes 80 --objects 7 {r50_batch} {few}"
    listed = {
        "inference_digits": [
            f"inference.py {on} --runtimes {runtimes} {bccd if quick else ''} {few} {x} {trained}"
            for x in dict.fromkeys(("", half))
        ],
        "inference_r50": [
            f"inference.py {r50} {r50.replace('onenet', 'baseline')} {on} {bccd}"
            f" --sizes {r50_size} --batch {batches} {r50_rounds} --runtimes {r50_runtimes} {x}"
            for x in dict.fromkeys(("", half))
        ],
        "assignment": [f"assignment.py {on} {shapes} {few}"],
        "training_step": [
            f"training_step.py {on} {small} {few}",
            f"training_step.py {on} {small} {few} --optimizer",
            *(f"{r50_step} {x}" for x in dict.fromkeys(("", half))),
        ],
    }
    if not gpu:
        of_bccd = "--config configs/bccd/recommended_R18_FPN.yaml --batches 3 --rounds 1"
        listed["settings"] = [
            f"scaling.py step {small} {few}",
            f"scaling.py workers {small} {few}",
            f"data_loader.py {of_bccd if quick else ''}",
            f"evaluation.py {'--images 20' if quick else ''} {few}",
        ]
    return listed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--weights", nargs="+", default=[], metavar="CONFIG=FILE")
    parser.add_argument("--output", type=Path, default=Path("output/benchmarks"))
    args = parser.parse_args()
    failed = []
    for name, group in commands("cpu", args.quick, args.weights).items():
        file = args.output / f"benchmark_{name}.json"
        file.unlink(missing_ok=True)
        for script in group:
            command = [*shlex.split(f"benchmarks/{script}"), "--json", str(file)]
            print(f"\n## python {shlex.join(command)}\n", flush=True)
            if subprocess.run([sys.executable, "-W", "ignore", *command]).returncode != 0:
                failed.append(shlex.join(command))
    print(f"\nWritten: {args.output}")
    if failed:
        sys.exit(f"error: {len(failed)} of them failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
