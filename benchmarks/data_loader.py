#!/usr/bin/env python
"""Times the training data loader alone.

python benchmarks/data_loader.py [--config configs/digits/recommended_R18_FPN.yaml]
    [--workers 0 2] [--batches 30] [--rounds 3] [--set KEY value ...]

In turn, in one run: each number of workers makes so many batches of SOLVER.IMS_PER_BATCH, after a
few that do not count. A training that takes less for a step than the loader for a batch waits for
data.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from common import make_parser, quartiles, ratios, record, round_order
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


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/digits/recommended_R18_FPN.yaml")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
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
            "what": f"{workers} worker{'s' * (workers != 1)}",
            "milliseconds": quartiles(values),
            "ratio": ratios(values, times[args.workers[0]]),
        }
        for workers, values in times.items()
    ]
    title = f"Data loader, {Path(args.config).stem}, a batch of {batch}"
    record(args.json, "settings", rows, title=title)


if __name__ == "__main__":
    main()
