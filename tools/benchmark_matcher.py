#!/usr/bin/env python
"""Times the exact one-to-one assignment: HungarianMatcher against SciPy on the dense cost matrix.

python tools/benchmark_matcher.py [--sizes 22400x300 200000x300] [--rounds 5] [--device cpu]

Both get the same predictions of one image and compute the same costs; SciPy's way moves the whole
M x n matrix to the CPU and solves it there, as DETR does. In a round each runs once, in turn; the
ratio is the median of the rounds' own. Objects come in heaps (every other one is a copy of its
neighbour, moved by a pixel), so that many want the same sample. Memory is the peak above what the
process had before, each way in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from onenet.heads import DensePredictions
from onenet.matcher import HungarianMatcher

NUM_CLASSES = 10
IMAGE_SIZE = (1000, 1000)


def make_problem(
    num_samples: int, num_gt: int, device: str
) -> tuple[DensePredictions, list[Instances]]:
    """Random predictions and heaped objects of one image."""
    generator = torch.Generator().manual_seed(0)

    def random_boxes(n: int) -> Tensor:
        corner = torch.rand(n, 2, generator=generator) * 900
        return torch.cat((corner, corner + 5 + torch.rand(n, 2, generator=generator) * 95), dim=1)

    gt_boxes = random_boxes(num_gt)
    gt_boxes[1::2] = gt_boxes[: num_gt - 1 : 2][: len(gt_boxes[1::2])] + 1
    gt_classes = torch.randint(NUM_CLASSES, (num_gt,), generator=generator)
    gt_classes[1::2] = gt_classes[: num_gt - 1 : 2][: len(gt_classes[1::2])]
    boxes = random_boxes(num_samples).to(device)
    logits = torch.randn(1, num_samples, NUM_CLASSES, generator=generator).to(device)
    gt = Instances(IMAGE_SIZE, gt_boxes=Boxes(gt_boxes), gt_classes=gt_classes).to(device)
    return DensePredictions(logits, boxes[None], boxes, (num_samples,)), [gt]


def match_with_scipy(predictions: DensePredictions, gt_instances: list[Instances]) -> np.ndarray:
    """Each object's sample, by SciPy on the dense matrix."""
    (gt,) = gt_instances
    cost = HungarianMatcher().cost(
        predictions.pred_logits[0], predictions.pred_boxes[0], predictions.anchors, gt
    )
    samples, objects = linear_sum_assignment(cost.cpu().numpy())
    return samples[objects.argsort()]


def match_with_ours(predictions: DensePredictions, gt_instances: list[Instances]) -> np.ndarray:
    """Each object's sample, by HungarianMatcher."""
    ((samples, _),) = HungarianMatcher()(predictions, gt_instances)
    return samples.cpu().numpy()


WAYS: dict[str, Callable] = {"SciPy, dense": match_with_scipy, "HungarianMatcher": match_with_ours}


def total_cost(samples: np.ndarray, problem: tuple[DensePredictions, list[Instances]]) -> float:
    """Of an assignment, to compare optima by: ties may be broken in two ways."""
    predictions, (gt,) = problem
    chosen = torch.as_tensor(samples, device=predictions.anchors.device)
    cost = HungarianMatcher().cost(
        predictions.pred_logits[0, chosen],
        predictions.pred_boxes[0, chosen],
        predictions.anchors[chosen],
        gt,
    )
    return cost.diagonal().double().sum().item()


def _peak_kib() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def _measure_memory(way: str, num_samples: int, num_gt: int, device: str, results) -> None:
    problem = make_problem(num_samples, num_gt, device)
    WAYS[way](*make_problem(100, 5, device))  # libraries load what they need
    before = _peak_kib()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    WAYS[way](*problem)
    on_gpu = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    results.put(((_peak_kib() - before) / 1024, on_gpu / 2**20))


def measure_memory(way: str, num_samples: int, num_gt: int, device: str) -> tuple[float, float]:
    """Peak memory in MiB, of the host and of the GPU, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(
        target=_measure_memory, args=(way, num_samples, num_gt, device, results)
    )
    process.start()
    memory = results.get(timeout=600)
    process.join()
    return memory


def measure(num_samples: int, num_gt: int, rounds: int, device: str) -> list[str]:
    """Rows of the table for one size."""
    problem = make_problem(num_samples, num_gt, device)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    totals = {}
    for round_index in range(rounds + 1):
        for way, match in WAYS.items():
            start = time.perf_counter()
            samples = match(*problem)  # ends on the CPU, so that nothing is left running
            if round_index > 0:  # the first is for warming up
                seconds[way].append(time.perf_counter() - start)
            totals[way] = total_cost(samples, problem)
    reference, ours = WAYS
    if not np.isclose(totals[reference], totals[ours], rtol=1e-6):
        sys.exit(f"error: the optima differ: {totals}")
    rows = []
    for way in WAYS:
        host, gpu = measure_memory(way, num_samples, num_gt, device)
        pairs = zip(seconds[way], seconds[reference], strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        rows.append(
            f"| {num_samples:,} x {num_gt} | {way} | {statistics.median(seconds[way]) * 1e3:.0f}"
            f" ({min(seconds[way]) * 1e3:.0f} to {max(seconds[way]) * 1e3:.0f}) | {ratio:.2f}"
            f" | {host:.0f} | {gpu:.0f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["22400x300", "200000x300"], metavar="MxN")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or "CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| samples x objects | way | ms (range) | ratio | host MiB | GPU MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in args.sizes:
        num_samples, num_gt = (int(part) for part in size.split("x"))
        print("\n".join(measure(num_samples, num_gt, args.rounds, args.device)), flush=True)


if __name__ == "__main__":
    main()
