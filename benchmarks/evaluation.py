#!/usr/bin/env python
"""Times COCO's AP of made-up detections by pycocotools and by faster-coco-eval.

python benchmarks/evaluation.py [--images 1000] [--classes 80] [--objects 7] [--rounds 3]

One table of precisions (onenet/evaluation/ap.py), of which the end-to-end evaluator takes up to
ten: each image has that many objects on average and 100 detections, most of them near one. What
the two tables differ by is printed too. On the CPU; needs faster-coco-eval.
"""

from __future__ import annotations

import functools
import sys
from unittest import mock

import numpy as np
from onenet.evaluation.coco_api import coco_api

from common import make_parser, quartiles, ratios, record, time_in_turn
from onenet.evaluation.ap import Scene, precision_table


def make_scene(rng: np.random.Generator, num_classes: int, num_objects: int) -> Scene:
    count = 1 + int(rng.integers(0, 2 * num_objects - 1))
    top_left, sizes = rng.uniform(0, 400, (count, 2)), rng.uniform(10, 200, (count, 2))
    classes = rng.integers(0, num_classes, count)
    near = rng.integers(0, count, 100)
    boxes = np.concatenate((top_left, top_left + sizes), axis=1)[near]
    boxes += rng.normal(0, 0.08, boxes.shape) * np.tile(sizes[near], 2)
    boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    is_right = rng.random(100) < 0.8
    return Scene(
        boxes.astype(np.float32),
        rng.random(100).astype(np.float32),
        np.where(is_right, classes[near], rng.integers(0, num_classes, 100)),
        np.concatenate((top_left, sizes), axis=1),
        classes,
        np.zeros(count, dtype=bool),
    )


def with_pycocotools(scenes: list[Scene]) -> np.ndarray:
    with mock.patch.dict(sys.modules, {"faster_coco_eval": None}):
        return precision_table(scenes, 100)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--objects", type=int, default=7, help="of an image, on average")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if not coco_api()[0].__module__.startswith("faster_coco_eval"):
        sys.exit('error: faster-coco-eval is not installed; pip install -e ".[fast-eval]"')

    rng = np.random.default_rng(0)
    scenes = [make_scene(rng, args.classes, args.objects) for _ in range(args.images)]
    calls = {
        "pycocotools": functools.partial(with_pycocotools, scenes),
        "faster-coco-eval": functools.partial(precision_table, scenes, 100),
    }
    times = time_in_turn(calls, args.rounds)
    rows = [
        {
            "what": name,
            "milliseconds": quartiles(values),
            "ratio": ratios(values, times["pycocotools"]),
        }
        for name, values in times.items()
    ]
    difference = np.abs(calls["pycocotools"]() - calls["faster-coco-eval"]()).max()
    title = f"COCO's AP of {args.images:,} images, {args.classes} classes"
    record(args.json, "settings", rows, title=title, largest_difference=float(difference))
    print(f"\nTheir precisions differ by {difference:.1g} at most.")


if __name__ == "__main__":
    main()
