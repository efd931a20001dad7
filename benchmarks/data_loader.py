#!/usr/bin/env python
"""Times the training data loader alone: a batch, and where an image's time goes.

python benchmarks/data_loader.py [--config configs/digits/recommended_R18_FPN.yaml]
    [--workers 0 1 2] [--batches 30] [--rounds 3] [--set KEY value ...]

In turn, in one run: each number of workers makes so many batches of SOLVER.IMS_PER_BATCH, after a
few that do not count; then the mapper alone, step by step, on the same images. A training that
takes less for a step than the loader for a batch waits for data.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

from detectron2.data import detection_utils, get_detection_dataset_dicts
from detectron2.data import transforms as T

from common import make_parser, quartiles, ratios, record, round_order
from onenet.data.mapper import OneNetDatasetMapper
from onenet.engine import Trainer, load_config

WARM_UP = 5


def milliseconds_a_batch(opts: list[str], config: str, workers: int, batches: int) -> float:
    """Of a loader of its own."""
    cfg = load_config(config, [*opts, "DATALOADER.NUM_WORKERS", str(workers)])
    loader = iter(Trainer.build_train_loader(cfg))
    for _ in range(WARM_UP):
        next(loader)
    start = time.perf_counter()
    for _ in itertools.islice(loader, batches):
        pass
    return 1000 * (time.perf_counter() - start) / batches


def time_steps(config: str, opts: list[str], num_images: int) -> dict[str, list[float]]:
    """Milliseconds an image of reading, of the transforms, and of the whole mapper."""
    cfg = load_config(config, opts)
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)[:num_images]
    mapper = OneNetDatasetMapper(cfg, is_train=True)
    augmentations = T.AugmentationList(detection_utils.build_augmentation(cfg, True))

    def read(image_dict: dict) -> object:
        return detection_utils.read_image(image_dict["file_name"], format=cfg.INPUT.FORMAT)

    def augment(image_dict: dict) -> Callable[[], object]:
        image = read(image_dict)
        return lambda: augmentations(T.AugInput(image))

    times: dict[str, list[float]] = {"read": [], "augment": [], "whole mapper": []}
    for image_dict in dicts:
        for name, call in (
            ("read", lambda image_dict=image_dict: read(image_dict)),
            ("augment", augment(image_dict)),
            ("whole mapper", lambda image_dict=image_dict: mapper(image_dict)),
        ):
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/digits/recommended_R18_FPN.yaml")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar=("KEY", "VALUE"))
    args = parser.parse_args()
    batch = load_config(args.config, args.set).SOLVER.IMS_PER_BATCH
    times: dict[int, list[float]] = {workers: [] for workers in args.workers}
    for i in range(args.rounds):
        for workers in round_order(args.workers, i):
            times[workers].append(
                milliseconds_a_batch(args.set, args.config, workers, args.batches)
            )
    rows = [
        {
            "what": f"a batch of {batch}, {workers} workers",
            "milliseconds": quartiles(values),
            "ratio": ratios(values, times[args.workers[0]]),
        }
        for workers, values in times.items()
    ]
    steps = time_steps(args.config, args.set, 100)
    rows += [
        {"what": f"one image, {name}", "milliseconds": quartiles(values), "ratio": None}
        for name, values in steps.items()
    ]
    title = f"Data loader, {Path(args.config).stem}"
    record(args.json, "settings", rows, title=title)


if __name__ == "__main__":
    main()
