#!/usr/bin/env python
"""Times assignment: this project's matchers against the plain formula, in turn, in one run.

python tools/benchmark_matcher.py [--shapes 16x22400x80x7 ...] [--rounds 7] [--device cpu]

A shape is images x samples x classes x objects of each image. The plain way computes, image by
image, the classification cost of all classes, L1, and GIoU of all pairs, as the formula says; for
min-cost it takes each object's minimum, for Hungarian it moves the matrix to the CPU and solves it
with SciPy. In each round every way runs once, in turn; a ratio is the median of the rounds' own,
above 1 where the matcher is faster. Objects come in heaps (every other one is its neighbour, moved
by a pixel), so that many want the same sample. Memory is the peak above what the process had
before, each way in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

from onenet.costs import l1_cost
from onenet.heads import DensePredictions
from onenet.matcher import HungarianMatcher, MinCostMatcher

IMAGE_SIZE = (1000, 1000)
SHAPES = ["16x22400x80x7", "1x200000x80x7", "2x22400x1x300", "1x200000x1x300"]
Problem = tuple[DensePredictions, list[Instances]]


def make_problem(shape: tuple[int, int, int, int], device: str) -> Problem:
    """Random predictions and heaped objects."""
    num_images, num_samples, num_classes, num_gt = shape
    generator = torch.Generator().manual_seed(0)

    def random_boxes(*size: int) -> Tensor:
        corner = torch.rand(*size, 2, generator=generator) * 900
        extent = 5 + torch.rand(*size, 2, generator=generator) * 95
        return torch.cat((corner, corner + extent), dim=-1)

    gt_instances = []
    for _ in range(num_images):
        boxes = random_boxes(num_gt)
        classes = torch.randint(num_classes, (num_gt,), generator=generator)
        twins = boxes[1::2].shape[0]
        boxes[1::2], classes[1::2] = boxes[::2][:twins] + 1, classes[::2][:twins]
        gt = Instances(IMAGE_SIZE, gt_boxes=Boxes(boxes), gt_classes=classes)
        gt_instances.append(gt.to(device))
    logits = torch.randn(num_images, num_samples, num_classes, generator=generator)
    boxes = random_boxes(num_images, num_samples).to(device)
    return DensePredictions(logits.to(device), boxes, boxes[0], (num_samples,)), gt_instances


@torch.no_grad()
def plain_cost(logits: Tensor, boxes: Tensor, gt: Instances) -> Tensor:
    """The cost as its formula says, (M, n): the paper's equation 1."""
    p = logits.sigmoid()
    positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
    gt_boxes = gt.gt_boxes.tensor
    return (
        2 * (positive - negative)[:, gt.gt_classes]
        + 5 * l1_cost(boxes, gt_boxes, gt.image_size)
        - 2 * generalized_box_iou(boxes, gt_boxes)
    )


def plain_min_cost(problem: Problem) -> list[np.ndarray]:
    return [cost.argmin(dim=0).cpu().numpy() for cost in plain_costs(problem)]


def plain_hungarian(problem: Problem) -> list[np.ndarray]:
    assigned = []
    for cost in plain_costs(problem):
        samples, objects = linear_sum_assignment(cost.cpu().numpy())
        assigned.append(samples[objects.argsort()])
    return assigned


def plain_costs(problem: Problem) -> Iterator[Tensor]:
    predictions, gt_instances = problem
    images = zip(predictions.pred_logits, predictions.pred_boxes, gt_instances, strict=True)
    return (plain_cost(*image) for image in images)


def min_cost(problem: Problem) -> list[np.ndarray]:
    return [samples.cpu().numpy() for samples, _ in MinCostMatcher()(*problem)]


def hungarian(problem: Problem) -> list[np.ndarray]:
    return [samples.cpu().numpy() for samples, _ in HungarianMatcher()(*problem)]


WAYS: dict[str, Callable[[Problem], list[np.ndarray]]] = {
    "min-cost, plain": plain_min_cost,
    "MinCostMatcher": min_cost,
    "Hungarian, plain and SciPy": plain_hungarian,
    "HungarianMatcher": hungarian,
}
PAIRS = [("min-cost, plain", "MinCostMatcher"), ("Hungarian, plain and SciPy", "HungarianMatcher")]


def total_cost(assigned: list[np.ndarray], problem: Problem) -> float:
    """Of an assignment, to compare optima by: ties may be broken in two ways."""
    predictions, gt_instances = problem
    total = 0.0
    for i, (samples, gt) in enumerate(zip(assigned, gt_instances, strict=True)):
        chosen = torch.as_tensor(samples, device=predictions.pred_boxes.device)
        cost = plain_cost(predictions.pred_logits[i, chosen], predictions.pred_boxes[i, chosen], gt)
        total += cost.diagonal().double().sum().item()
    return total


def _peak_kib() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def _measure_memory(way: str, shape: tuple[int, int, int, int], device: str, results) -> None:
    problem = make_problem(shape, device)
    WAYS[way](make_problem((1, 100, 2, 5), device))  # libraries load what they need
    before = _peak_kib()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        on_gpu_before = torch.cuda.max_memory_allocated()
    WAYS[way](problem)
    on_gpu = torch.cuda.max_memory_allocated() - on_gpu_before if device == "cuda" else 0
    results.put(((_peak_kib() - before) / 1024, on_gpu / 2**20))


def measure_memory(way: str, shape: tuple[int, int, int, int], device: str) -> tuple[float, float]:
    """Peak memory in MiB, of the host and of the GPU, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_measure_memory, args=(way, shape, device, results))
    process.start()
    memory = results.get(timeout=600)
    process.join()
    return memory


def measure(shape: tuple[int, int, int, int], rounds: int, device: str) -> list[str]:
    """Rows of the table for one shape."""
    problem = make_problem(shape, device)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    totals = {}
    for round_index in range(rounds + 1):
        for way, match in WAYS.items():
            start = time.perf_counter()
            assigned = match(problem)  # ends on the CPU, so that nothing is left running
            if round_index > 0:  # the first is for warming up
                seconds[way].append(time.perf_counter() - start)
            totals[way] = total_cost(assigned, problem)
    rows = []
    for plain, ours in PAIRS:
        if not np.isclose(totals[plain], totals[ours], rtol=1e-5):
            sys.exit(f"error: the assignments of {ours} cost {totals[ours]}, not {totals[plain]}")
        pairs = zip(seconds[plain], seconds[ours], strict=True)
        ratio = statistics.median(theirs / mine for theirs, mine in pairs)
        for way in (plain, ours):
            host, gpu = measure_memory(way, shape, device)
            ms = [1e3 * s for s in seconds[way]]
            rows.append(
                f"| {' x '.join(f'{x:,}' for x in shape)} | {way} | {statistics.median(ms):.1f}"
                f" ({min(ms):.1f} to {max(ms):.1f}) | {'' if way == plain else f'{ratio:.1f}'}"
                f" | {host:.0f} | {gpu:.0f} |"
            )
    return rows


def parse_shape(text: str) -> tuple[int, int, int, int]:
    parts = [int(part) if part.isdecimal() else 0 for part in text.split("x")]
    if len(parts) != 4 or min(parts) < 1 or parts[1] < parts[3]:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not images x samples x classes x objects, with fewer objects than samples"
        )
    return tuple(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes", nargs="+", type=parse_shape, default=[parse_shape(s) for s in SHAPES]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU")
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        "| images x samples x classes x objects | way | ms (range) | times faster | host MiB"
        " | GPU MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for shape in args.shapes:
        print("\n".join(measure(shape, args.rounds, args.device)), flush=True)


if __name__ == "__main__":
    main()
