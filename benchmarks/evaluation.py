#!/usr/bin/env python
"""Times the end-to-end evaluation and the audit of made-up detections beside pycocotools' one AP.

python benchmarks/evaluation.py [--images 5000] [--classes 80] [--objects 7] [--detections 100]
    [--rounds 3]

By default a set of the size of COCO's val2017: each image has that many objects on average, and
detections, most of them near an object. pycocotools' AP is of area "all" only, and its structures
are made before. The evaluation (onenet/evaluation/measure.py) has ten APs, by crowding and after
NMS, and all else in end_to_end.json. The audit is that of a json file, reading and checking it and
its annotations included. Memory is a call's peak above what is in use before. On the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common import make_parser, peak_memory, quartiles, ratios, record, time_in_turn
from onenet.comparison import audit
from onenet.evaluation.measure import measure
from onenet.evaluation.results_files import read_annotations, read_results

WIDTH, HEIGHT = 640, 480


def make_image(
    rng: np.random.Generator, num_classes: int, num_objects: int, num_detections: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Boxes (x, y, width, height) and classes of objects; those of detections, and scores."""
    count = int(rng.integers(1, 2 * num_objects))
    boxes = np.concatenate(
        (rng.uniform(0, (WIDTH - 210, HEIGHT - 210), (count, 2)), rng.uniform(10, 200, (count, 2))),
        1,
    )
    classes = rng.integers(0, num_classes, count)
    near = rng.integers(0, count, num_detections)
    found = boxes[near] + rng.normal(0, 0.08, (num_detections, 4)) * np.tile(boxes[near, 2:], 2)
    is_right = rng.random(num_detections) < 0.8
    found_classes = np.where(is_right, classes[near], rng.integers(0, num_classes, num_detections))
    return (boxes, classes), (np.abs(found), found_classes, rng.random(num_detections))


def make_files(folder: str, *sizes: int) -> tuple[Path, Path]:
    """Writes val.json and found.json in COCO format, unless they are there.

    Args:
        folder: of the files.
        *sizes: numbers of images, classes, objects and detections of an image.
    """
    truth, found = Path(folder, "val.json"), Path(folder, "found.json")
    if truth.is_file():
        return truth, found
    num_images, num_classes, *numbers = sizes
    rng = np.random.default_rng(0)
    images, annotations, detections = [], [], []
    for i in range(1, num_images + 1):
        images.append({"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT})
        objects, found_here = make_image(rng, num_classes, *numbers)
        for box, label in zip(*(values.tolist() for values in objects), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1}
            area = box[2] * box[3]
            annotations.append({**entry, "bbox": box, "area": area, "iscrowd": 0})
        for box, label, score in zip(*(values.tolist() for values in found_here), strict=True):
            detections.append(
                {"image_id": i, "category_id": label + 1, "bbox": box, "score": score}
            )
    categories = [{"id": i, "name": str(i)} for i in range(1, num_classes + 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    truth.write_text(json.dumps(content), encoding="utf-8")
    found.write_text(json.dumps(detections), encoding="utf-8")
    return truth, found


def make_pycocotools(*given: Any) -> Callable[[], float]:
    """One AP, of 0 to 100."""
    truth, found = make_files(*given)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        detections = coco.loadRes(str(found))

    def call() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(coco, detections, "bbox")
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
            evaluation.params.maxDets = [100]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"]
        return float(100 * precision[precision > -1].mean())

    return call


def make_measure(*given: Any) -> Callable[[], float]:
    """The evaluation of detections in memory; returns the AP."""
    truth, found = make_files(*given)
    annotations = read_annotations(truth)
    results = read_results(found, annotations)
    names = list(annotations.class_names.values())

    def call() -> float:
        # Scenes keep what they have found
        report, _ = measure(annotations.scenes(results), "made up", names)
        return report["results"]["AP"]

    return call


def make_audit(*given: Any) -> Callable[[], float]:
    """The audit of a file; returns the AP."""
    truth, found = make_files(*given)

    def call() -> float:
        (detector,) = audit(truth, {"made up": found})["detectors"]
        return detector["aggregate"]["as_configured"]["AP"]["mean"]

    return call


WAYS = {
    "pycocotools, one AP": make_pycocotools,
    "end-to-end evaluation": make_measure,
    "audit of a json file": make_audit,
}


def rows_of(args: argparse.Namespace, folder: str) -> tuple[list[dict[str, Any]], float]:
    """The rows, and by how much the APs differ at most."""
    given = (folder, args.images, args.classes, args.objects, args.detections)
    make_files(*given)
    memory = {name: peak_memory(make, *given) for name, make in WAYS.items()}
    calls = {name: make(*given) for name, make in WAYS.items()}
    found: dict[str, float] = {}

    def keep(name: str) -> None:
        found[name] = calls[name]()

    ways = {name: functools.partial(keep, name) for name in calls}
    times = time_in_turn(ways, args.rounds, warm_up=1)
    first = next(iter(times))
    rows = [
        {
            "what": name,
            "milliseconds": quartiles(values),
            "ratio": ratios(values, times[first]),
            "mib": memory[name],
        }
        for name, values in times.items()
    ]
    return rows, max(abs(ap - found[first]) for ap in found.values())


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--objects", type=int, default=7, help="of an image, on average")
    parser.add_argument("--detections", type=int, default=100, help="of an image")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, difference = rows_of(args, folder)
    title = (
        f"Evaluation of {args.images:,} images, {args.classes} classes,"
        f" {args.detections} detections an image"
    )
    record(args.json, "settings", rows, title=title, largest_difference=difference)
    print(f"\nTheir APs, in points, differ by {difference:.1g} at most.")


if __name__ == "__main__":
    main()
