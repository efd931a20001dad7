#!/usr/bin/env python
"""Times exported ONNX files in ONNX Runtime's CPU provider, in turns: float32 beside int8.

python benchmarks/exported_files.py float32.onnx int8.onnx [--image photo.jpg] [--sizes 320x256 ...]

One image at a time, from pixels to boxes. Ratios are to the first file's time in the same round.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import Tensor

from common import Subject, make_parser, measure, quartiles, record
from onenet.comparison.tables import Table, markdown_table
from onenet.utils.errors import ConfigError, exit_with_one_sentence


def load(path: Path, threads: int) -> Subject:
    """A file's session, as what :func:`common.measure` times."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes
        raise ConfigError(f"{path} is no ONNX file that can be read ({error}).") from error

    def inputs(batch: Tensor) -> dict[str, np.ndarray]:
        sizes = np.array([batch.shape[2:]], dtype=np.int64)
        return {"images": batch.permute(0, 2, 3, 1).numpy(), "image_sizes": sizes}

    return Subject(inputs, lambda feed: session.run(None, feed))


def table(content: Mapping[str, Any]) -> str:
    """Milliseconds, and the ratio to the first file."""
    rows = [
        [row["file"], f"{row['size'] / 2**20:.1f}", row["pixels"]]
        + [f"{row['time']['median']:.1f}"]
        + ["{median:.2f} ({lower:.2f} to {upper:.2f})".format(**row["ratio"])]
        for run in content["runs"]
        for row in run["rows"]
    ]
    return markdown_table(Table(["file", "MiB", "pixels", "ms", "ratio to the first"], rows))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.onnx")
    parser.add_argument("--image", help="a photo, resized to each size (default: noise)")
    parser.add_argument("--sizes", nargs="+", default=["320x256"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    subjects = {path: load(path, args.threads) for path in args.files}
    rows = []
    for size in args.sizes:
        width, height = map(int, size.split("x"))
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        if args.image:
            with Image.open(args.image) as image:
                pixels = np.array(image.convert("RGB").resize((width, height)))
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        times = measure(subjects, [batch], args.rounds)
        first = times[args.files[0]].total
        for path in args.files:
            ratios = [a / b for a, b in zip(times[path].total, first, strict=True)]
            row = {"file": path.name, "size": os.path.getsize(path), "pixels": size}
            row |= {"time": quartiles(times[path].total), "ratio": quartiles(ratios)}
            rows.append(row)
    record(args.json, "exported_files", rows, table, threads=args.threads)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
