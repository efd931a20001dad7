#!/usr/bin/env python
"""Exported files in their engines on the CPU: latency in turns, or AP.

python benchmarks/exported_files.py float32.onnx int8.onnx float32.ts 352x320.tflite \\
    [--sizes 320x320 ...] [--engines onnxruntime openvino wasm] [--threads 1 2] \\
    [--image photo.jpg]
python benchmarks/exported_files.py float32.onnx int8.onnx --evaluate model_final.pth

One image at a time, from pixels to boxes. Ratios are to the first file in the first engine with as
many threads, in the same round. wasm is onnxruntime-web in Node.js. --evaluate gives the AP on the
checkpoint's DATASETS.TEST instead, of the checkpoint and of each file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import (
    Opener,
    Subject,
    litert_opener,
    make_parser,
    measure,
    onnxruntime_opener,
    openvino_opener,
    quartiles,
    ratios,
    record,
    wasm_opener,
)
from onenet.export import ExportedDetector, average_precisions, open_exported
from onenet.predictor import Predictor, load_predictor_config
from onenet.utils.errors import ConfigError, exit_with_one_sentence

Row = dict[str, Any]


def torch_opener() -> Opener:
    """For .ts and .pt2 files; as :mod:`common.engines`."""

    def open_file(file: Path, shapes: object, threads: int) -> Callable[..., Any]:
        run, _ = open_exported(file)

        def run_with_threads(*arrays: np.ndarray) -> Any:
            torch.set_num_threads(threads)  # of the whole process
            return run(*arrays)

        return run_with_threads

    return open_file


def openers(args: argparse.Namespace) -> dict[tuple[Path, str], Opener]:
    """By file and engine: an .onnx file in each engine, .tflite in LiteRT, others in PyTorch."""
    if "wasm" in args.engines and args.ort_web is None:
        raise ConfigError("--engines wasm needs --ort-web FOLDER.")
    makers = {
        "onnxruntime": onnxruntime_opener,
        "openvino": openvino_opener,
        "wasm": partial(wasm_opener, args.ort_web),
        "litert": litert_opener,
        "torch": torch_opener,
    }
    found = {}
    for file in args.files:
        if not file.is_file():
            raise ConfigError(f"{file} does not exist or is no file.")
        engines = {".onnx": args.engines, ".tflite": ["litert"]}.get(file.suffix, ["torch"])
        for engine in engines:
            found[file, engine] = makers[engine]()
    return found


def time_files(args: argparse.Namespace) -> Iterator[Row]:
    """A row for each size, number of threads, file and engine."""
    found = openers(args)
    first = next(iter(found))
    for size in args.sizes:
        width, height = map(int, size.split("x"))
        batch = read_batch(args.image, width, height)
        subjects, failures = {}, {}
        for (file, engine), opener in found.items():
            for threads in args.threads:
                key = (file, engine, threads)
                try:
                    run = opener(file, [(1, height, width, 3), (1, 2)], threads)
                    subject = Subject(as_inputs, lambda inputs, run=run: run(*inputs))
                    subject(batch)
                except Exception as error:  # an engine raises anything; the others go on
                    failures[key] = reason(error)
                else:
                    subjects[key] = subject
        for key in [(*first, threads) for threads in args.threads]:
            if key in failures:
                raise ConfigError(f"{first[0]} cannot be run in {first[1]} ({failures[key]}).")
        times = measure(subjects, [batch], args.rounds)
        for file, engine, threads in subjects | failures:
            row = {**place(file, engine), "pixels": size, "threads": threads}
            if (key := (file, engine, threads)) in failures:
                yield row | {"failure": failures[key]}
            else:
                total = times[key].total
                ratio = ratios(total, times[(*first, threads)].total)
                yield row | {"time": quartiles(total), "ratio": ratio}


def evaluate_files(args: argparse.Namespace) -> Iterator[Row]:
    """A row for the checkpoint, and for each file and engine."""
    cfg = load_predictor_config(args.config or args.evaluate, [*args.set, "MODEL.DEVICE", "cpu"])
    if not cfg.DATASETS.TEST:
        raise ConfigError("--evaluate needs DATASETS.TEST, which is empty or not there.")
    torch.set_num_threads(args.threads[0])
    model = Predictor(cfg, args.evaluate).model
    yield {**place(Path(args.evaluate), "checkpoint"), "ap": average_precisions(cfg, model)}
    for (file, engine), opener in openers(args).items():
        try:
            run = opener(file, None, args.threads[0])
            exported = ExportedDetector(run, max(model.backbone.size_divisibility, 1))
            yield {**place(file, engine), "ap": average_precisions(cfg, exported)}
        except Exception as error:
            yield {**place(file, engine), "failure": reason(error)}


def reason(error: Exception) -> str:
    """One line."""
    return " ".join(str(error).split())[:150]


def place(file: Path, engine: str) -> Row:
    return {"file": file.name, "engine": engine, "size": file.stat().st_size}


def read_batch(image: str | None, width: int, height: int) -> Tensor:
    """(1, 3, height, width) uint8: the photo, resized, or noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if image:
        with Image.open(image) as file:
            pixels = np.array(file.convert("RGB").resize((width, height)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def as_inputs(batch: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The inputs of an exported file."""
    sizes = np.array([batch.shape[2:]], dtype=np.int64)
    return batch.permute(0, 2, 3, 1).contiguous().numpy(), sizes


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    engines = ["onnxruntime", "openvino", "wasm"]
    parser.add_argument("--engines", nargs="+", choices=engines, default=engines[:1])
    parser.add_argument(
        "--ort-web",
        type=Path,
        metavar="FOLDER",
        help="node_modules/onnxruntime-web of `npm install onnxruntime-web`, for wasm",
    )
    parser.add_argument("--image", help="a photo, resized to each size (default: noise)")
    parser.add_argument("--sizes", nargs="+", default=["320x256"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--evaluate", metavar="WEIGHTS", help="the checkpoint; AP, no times")
    parser.add_argument("--config", help="for --evaluate (default: the checkpoint's)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="overrides of it")
    args = parser.parse_args()
    rows = evaluate_files(args) if args.evaluate else time_files(args)
    record(args.json, "exported_files", list(rows))


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
