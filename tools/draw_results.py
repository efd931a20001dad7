#!/usr/bin/env python
"""Draws the same images under several detectors, from their results files, as one picture.

python tools/draw_results.py --dataset voc2007_val --images 10 --seed 1 --output results.jpg \\
    "FCOS with NMS=output/fcos/inference" "OneNet=output/onenet/inference"

Rows are the ground truth and the detectors. Green boxes find an object, thick red ones are
duplicates, orange ones lie on none of their class.
"""

import argparse
import io
import random
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from PIL import Image, ImageDraw

import onenet.data  # noqa: F401  (registers the datasets)
from onenet.comparison.pictures import Picture, draw_detections, draw_truth
from onenet.utils.errors import ConfigError, exit_with_one_sentence
from onenet.utils.visualizer import tile

HEIGHT = 150  # pixels of each image
LABEL = 22  # pixels above each row


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "detectors",
        nargs="+",
        metavar="LABEL=FOLDER",
        help="folders with a coco_instances_results.json, as evaluations leave them",
    )
    parser.add_argument("--dataset", required=True, help="registered, such as voc2007_val")
    parser.add_argument("--images", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--columns", type=int, default=5, help="images a row (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="by which they are drawn (default: 1)")
    parser.add_argument(
        "--score",
        type=float,
        help="least score of a box (default: the best boxes of an image, as many as it has objects,"
        " since a score means something else in each detector)",
    )
    parser.add_argument("--output", required=True, help="the picture, a .jpg or .png file")
    return parser.parse_args()


def words(pictures: list[Picture]) -> str:
    """Such as "OneNet: 9 found, 2 duplicate, 0 other"."""
    counts = {kind: sum(p.counts[kind] for p in pictures) for kind in pictures[0].counts}
    return f"{pictures[0].label}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items())


def row(pictures: list[Picture]) -> np.ndarray:
    """Pictures side by side in one height, their label above."""
    images = []
    for picture in pictures:
        image = Image.open(io.BytesIO(picture.jpeg)).convert("RGB")
        image = image.resize((round(image.width * HEIGHT / image.height), HEIGHT))
        images.append(np.asarray(image))
    joined = tile([images], gap=4)
    label = Image.new("RGB", (joined.shape[1], LABEL), "white")
    ImageDraw.Draw(label).text((6, 4), words(pictures), fill="black", font_size=15)
    return np.concatenate((np.asarray(label), joined))


def main() -> None:
    args = parse_arguments()
    if min(args.images, args.columns) < 1:
        raise ConfigError("--images and --columns have to be 1 at least.")
    if args.dataset not in DatasetCatalog:
        raise ConfigError(f"--dataset {args.dataset}: there is no such registered dataset.")
    records = get_detection_dataset_dicts([args.dataset], filter_empty=False)
    records = random.Random(args.seed).sample(records, min(args.images, len(records)))
    drawn = [[draw_truth(record) for record in records]]
    for entry in args.detectors:
        label, _, folder = entry.rpartition("=")
        if not label:
            raise ConfigError(f"'{entry}' is no LABEL=FOLDER.")
        pictures = draw_detections(records, args.dataset, Path(folder), label, args.score, 0.5)
        if not pictures:
            raise ConfigError(f"{folder} has no coco_instances_results.json; evaluate first.")
        drawn.append(pictures)
    rows = [
        row(pictures[start : start + args.columns])
        for start in range(0, len(records), args.columns)
        for pictures in drawn
    ]
    width = max(r.shape[1] for r in rows)
    rows = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    Image.fromarray(np.concatenate(rows)).save(args.output, quality=85)
    print("\n".join(words(pictures) for pictures in drawn))


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
