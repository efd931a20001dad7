#!/usr/bin/env python
"""Runs tests, trainings and benchmarks on a GPU, in order of worth, in limited time, resumable.

python benchmarks/gpu_suite.py [--output output/gpu_suite] [--minutes 9] [--list] [--dry-run]

Parts are the tests marked gpu; trainings on VOC 2007 and kangaroos (configs/compare, three seeds
side by side; ResNet-50 from random weights); training steps and matching with their memory; and
inference, eager, compiled and in half precision. Each has a process and a time limit of its own.
As soon as it ends, OUTPUT/part_NAME.json tells how, with commit, GPU and torch's version.
OUTPUT/results has what was measured, for tools/results_tables.py: suite.json (kind `suite`),
benchmark_*.json, and of trainings NAME.json.

The same command again skips parts that are done, then begins those that have not been tried, and
at last goes on with those that failed or ran out of time (trainings from their checkpoints). Parts
whose data is not in the folder that DETECTRON2_DATASETS names are left out, and named. --dry-run
does all on the CPU with tiny sizes; its numbers say nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from run import commands

DONE, FAILED, TIMED_OUT = "done", "failed", "ran out of time"
LEAST = 15  # seconds: imports alone take as long
GRACE = 10  # seconds for a process to end
PHOTOS = "configs/photos/recommended.yaml", "configs/photos/baseline_fcos.yaml"


@dataclass(frozen=True)
class Part:
    """A command of Python.

    Attributes:
        limit: in seconds.
        data: folders below DETECTRON2_DATASETS.
    """

    name: str
    words: list[str]
    limit: float
    data: tuple[str, ...] = ()


def suite(output: Path, dry_run: bool) -> list[Part]:
    """All parts, those of the most worth first."""
    tests = ["-m", "pytest", "-q", "-m", "gpu", *(["--collect-only"] * dry_run)]
    benchmarks = commands("cpu" if dry_run else "cuda", dry_run, [])
    return [
        Part("tests", tests, 120),
        training("voc2007", output, dry_run, 220),
        *([] if dry_run else [training("kangaroo", output, dry_run, 150)]),  # as voc2007's
        *timings("training_step", benchmarks, output, 60),
        *timings("assignment", benchmarks, output, 60),
        *timings("inference_digits", benchmarks, output, 90),
        *inference_of_photos(output, dry_run),
        *timings("inference_r50", benchmarks, output, 90, ("BCCD",)),
        training("voc2007", output, dry_run, 220, "_r50"),
    ]


def training(data: str, output: Path, dry_run: bool, limit: float, variant: str = "") -> Part:
    """A plan's detectors and seeds, all side by side."""
    name = f"voc2007{variant}" if variant else data
    seeds = ["1"] if variant or dry_run else ["1", "2", "3"]
    words = ["tools/compare.py", "--plan", f"configs/compare/{data}.yaml", "--seeds", *seeds]
    words += ["--output", str(output / name), "--speed-rounds", "0", "--images", "1"]
    words += ["--jobs", str(1 if dry_run else 4 * len(seeds))]
    opts = {"TEST.EVAL_PERIOD": "0", "SOLVER.CHECKPOINT_PERIOD": "100"}
    if variant:
        opts |= {"MODEL.TIMM.NAME": "resnet50", "MODEL.WEIGHTS": "", "SOLVER.MAX_ITER": "500"}
    if dry_run:
        opts |= {"DATASETS.TRAIN": "('kangaroo_val',)", "DATASETS.TEST": "('kangaroo_val',)"}
        opts |= {"SOLVER.MAX_ITER": "2", "SOLVER.IMS_PER_BATCH": "2", "INPUT.MIN_SIZE_TEST": "32"}
        opts |= {"INPUT.MIN_SIZE_TRAIN": "(32,)", "DATALOADER.NUM_WORKERS": "0"}
        data = "kangaroo"
    words += ["--set", *(word for pair in opts.items() for word in pair)]
    return Part(name, words, limit, (data,))


def timings(
    name: str,
    benchmarks: dict[str, list[str]],
    output: Path,
    limit: float,
    data: tuple[str, ...] = (),
) -> list[Part]:
    """Commands of benchmarks/run.py, one part each, with one file."""
    file = ["--json", str(output / "results" / f"benchmark_{name}.json")]
    return [
        Part(f"{name}_{i}", [*shlex.split(f"benchmarks/{script}"), *file], limit, data)
        for i, script in enumerate(benchmarks[name], 1)
    ]


def inference_of_photos(output: Path, dry_run: bool) -> list[Part]:
    """With the weights that the suite has trained, if it has."""
    data = "kangaroo" if dry_run else "voc2007"
    device, size = ("cpu", "32") if dry_run else ("cuda", "256x320")
    words = ["benchmarks/inference.py", *PHOTOS, "--device", device, "--sizes", size]
    words += ["--rounds", "2"] if dry_run else []
    words += ["--set", "DATASETS.TEST", f"('{data}_val',)", "MODEL.WEIGHTS", ""]
    words += ["--json", str(output / "results" / "benchmark_inference_voc2007.json")]
    names = ("OneNet-recommended", "FCOS")
    runs = [output / "voc2007" / "runs" / name / "seed1" / "model_final.pth" for name in names]
    if all(run.is_file() for run in runs):
        words += ["--weights", *(f"{c}={r}" for c, r in zip(PHOTOS, runs, strict=True))]
    runtimes = ["--runtimes", "eager", *([] if dry_run else ["compile"])]
    parts = [Part("inference_voc2007_1", [*words, *runtimes], 90, (data,))]
    if not dry_run:
        parts.append(Part("inference_voc2007_2", [*words, *runtimes, "--half"], 90, (data,)))
    return parts


def state(output: Path, part: Part) -> dict[str, Any]:
    """What the part's file says; {} if it was not tried."""
    try:
        return json.loads((output / f"part_{part.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def missing_data(part: Part) -> list[str]:
    """Folders of data that are not there."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    return [str(root / name) for name in part.data if not (root / name).is_dir()]


def next_part(parts: Sequence[Part], output: Path, tried: set[str]) -> Part | None:
    """The first part that was not tried before this start, or else that is not done."""
    open_parts = [part for part in parts if part.name not in tried and not missing_data(part)]
    states = {part.name: state(output, part) for part in open_parts}
    open_parts = [part for part in open_parts if states[part.name].get("status") != DONE]
    return min(open_parts, key=lambda part: bool(states[part.name]), default=None)


def carry_out(part: Part, output: Path, seconds: float) -> str:
    """Runs a part for at most so many seconds, and writes its file; returns its status."""
    log = output / f"part_{part.name}.log"
    start = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *part.words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it has started is ended with it
        )
        try:
            status = DONE if process.wait(seconds) == 0 else FAILED
        except subprocess.TimeoutExpired:
            status = TIMED_OUT
        finally:
            end(process)
    from common.report import describe_run  # after the part: it takes seconds
    from onenet.utils.files import write_json

    record = {
        "part": part.name,
        "status": status,
        "exit_code": process.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "limit": round(seconds, 1),
        "command": shlex.join(["python", *part.words]),
        **describe_run(),
        "output": log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:],
    }
    write_json(str(output / f"part_{part.name}.json"), record)
    comparison = output / part.name / "comparison.json"
    if status == DONE and comparison.is_file():
        shutil.copy(comparison, output / "results" / f"{part.name}.json")
    return status


def end(process: subprocess.Popen) -> None:
    """Ends a part and all that it has started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def stop(*_: object) -> NoReturn:
    """Of SIGTERM, which `timeout` sends."""
    sys.exit("error: ended by SIGTERM; the same command goes on.")


def run_suite(output: Path, minutes: float, dry_run: bool) -> int:
    """Runs parts until the minutes are over; returns the number of those that are not done."""
    (output / "results").mkdir(parents=True, exist_ok=True)
    deadline, tried = time.monotonic() + 60 * minutes, set()
    while (left := deadline - time.monotonic()) > LEAST:
        part = next_part(suite(output, dry_run), output, tried)
        if part is None:
            break
        tried.add(part.name)
        seconds = min(part.limit, left)
        print(f"{part.name}: at most {seconds:.0f} s ...", flush=True)
        print(f"{part.name}: {carry_out(part, output, seconds)}", flush=True)
    return show(output, dry_run)


def show(output: Path, dry_run: bool) -> int:
    """Prints how each part stands, and writes it; returns the number of those not done."""
    parts = suite(output, dry_run)
    states = [found for part in parts if (found := state(output, part))]
    if states:
        text = json.dumps({"parts": states}, indent=1)
        (output / "results" / "suite.json").write_text(text, encoding="utf-8")
    for part in parts:
        found = state(output, part)
        status = found.get("status", "not tried yet")
        if missing := missing_data(part):
            status = f"left out: {', '.join(missing)} is missing (DETECTRON2_DATASETS)"
        elif found:
            status += f" after {found['seconds']:.0f} s, at commit {found['commit']}"
        print(f"{part.name:22} {status}")
    return sum(state(output, part).get("status") != DONE for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/gpu_suite"))
    parser.add_argument("--minutes", type=float, default=9.0, help="of all parts (default: 9)")
    parser.add_argument("--list", action="store_true", help="only show how the parts stand")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    if args.list:
        show(args.output, args.dry_run)
    elif count := run_suite(args.output, args.minutes, args.dry_run):
        sys.exit(f"{count} parts are not done; the same command goes on with them.")


if __name__ == "__main__":
    main()
