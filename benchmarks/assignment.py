#!/usr/bin/env python
"""Times assignment and losses: this project's against the plain formula, in turn, in one run.

python benchmarks/assignment.py [--shapes 16x22400x80x7 ...] [--rounds 5] [--device cpu]

A shape is images x samples x classes x objects of each image. The plain way computes, image by
image, the classification cost of all classes, L1, and GIoU of all pairs, as the formula says; for
min-cost it takes each object's minimum, for Hungarian it moves the matrix to the CPU and solves it
with SciPy. "Losses" are matching, the three losses and the gradients of logits and boxes; the plain
way has fvcore's focal loss on a matrix of targets. In each round every way runs once; a ratio is
the median of the rounds' own, above 1 where this project's is faster. Objects come in heaps (every
other one is its neighbour, moved by a pixel), so that many want the same sample. Memory is the peak
above what was in use before, of the device; on a CPU each way has a process of its own.

The limit, in the json alone, is what a perfect program would need to move the bytes that have to
move, at the speed of a copy, measured in the same run. Matching reads all boxes and, of the logits,
those of the image's classes, in pieces of a cache line (64 bytes on a CPU, 32 on a GPU); losses
read all logits and boxes again, and write the gradients of the logits.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from fvcore.nn import sigmoid_focal_loss_jit
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss

from common import (
    copy_bandwidth,
    make_parser,
    peak_memory,
    quartiles,
    ratios,
    record,
    time_in_turn,
)
from onenet.modeling.costs import image_scale, l1_cost
from onenet.modeling.criterion import Criterion
from onenet.modeling.matcher import HungarianMatcher, Matcher, MinCostMatcher
from onenet.structures import DensePredictions, Targets

IMAGE_SIZE = (1000, 1000)
SHAPES = ["16x22400x80x7", "2x22400x1x300"]
Shape = tuple[int, int, int, int]
Problem = tuple[DensePredictions, list[Instances]]
Pairs = tuple[Tensor, Tensor]


def make_problem(shape: Shape, device: str) -> Problem:
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
    logits = logits.to(device).requires_grad_()
    return DensePredictions.from_boxes(
        logits, boxes.clone().requires_grad_(), boxes[0], (num_samples,)
    ), gt_instances


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


def plain_costs(problem: Problem) -> Iterator[Tensor]:
    """Of each image."""
    predictions, gt_instances = problem
    images = zip(predictions.pred_logits, predictions.pred_boxes, gt_instances, strict=True)
    return (plain_cost(*image) for image in images)


def plain_min_cost(problem: Problem) -> list[Pairs]:
    return [
        (cost.argmin(dim=0), torch.arange(cost.shape[1], device=cost.device))
        for cost in plain_costs(problem)
    ]


def plain_hungarian(problem: Problem) -> list[Pairs]:
    pairs = []
    for cost in plain_costs(problem):
        assigned = linear_sum_assignment(cost.cpu().numpy())
        samples, objects = (torch.as_tensor(x, device=cost.device) for x in assigned)
        order = objects.argsort()
        pairs.append((samples[order], objects[order]))
    return pairs


def match(matcher: Matcher, problem: Problem) -> None:
    """Without the pairs image by image, which the criterion does not ask for."""
    predictions, gt_instances = problem
    matcher.match(predictions, Targets.from_instances(gt_instances, predictions.pred_logits.device))


def plain_losses(matcher: Callable[[Problem], list[Pairs]], problem: Problem) -> None:
    """Losses and gradients as in the authors' code, with fvcore's focal loss."""
    predictions, gt_instances = problem
    logits, boxes = predictions.pred_logits, predictions.pred_boxes
    pairs = matcher(problem)
    images = torch.cat([torch.full_like(s, i) for i, (s, _) in enumerate(pairs)])
    samples = torch.cat([s for s, _ in pairs])
    of_images = list(zip(gt_instances, pairs, strict=True))
    classes = torch.cat([gt.gt_classes[objects] for gt, (_, objects) in of_images])
    gt_boxes = torch.cat([gt.gt_boxes.tensor[objects] for gt, (_, objects) in of_images])
    scale = image_scale(IMAGE_SIZE, boxes.device)
    target = torch.zeros_like(logits)
    target[images, samples, classes] = 1.0
    matched = boxes[images, samples]
    loss = 2 * sigmoid_focal_loss_jit(logits, target, alpha=0.25, gamma=2.0, reduction="sum")
    loss += 5 * F.l1_loss(matched / scale, gt_boxes / scale, reduction="sum")
    loss += 2 * generalized_box_iou_loss(matched, gt_boxes, reduction="sum")
    finish(loss / len(classes), problem)


def losses(matcher: Matcher, problem: Problem) -> None:
    finish(sum(Criterion(matcher=matcher)(*problem).values()), problem)


def finish(loss: Tensor, problem: Problem) -> None:
    loss.backward()
    problem[0].pred_logits.grad = problem[0].pred_boxes.grad = None


PAIRS = {
    "match, min-cost": (plain_min_cost, functools.partial(match, MinCostMatcher())),
    "match, Hungarian": (plain_hungarian, functools.partial(match, HungarianMatcher())),
    "losses, min-cost": (
        functools.partial(plain_losses, plain_min_cost),
        functools.partial(losses, MinCostMatcher()),
    ),
}


def total_cost(pairs: list[Pairs], problem: Problem) -> float:
    """Of an assignment, to compare optima by: ties may be broken in two ways."""
    total = 0.0
    for cost, (samples, objects) in zip(plain_costs(problem), pairs, strict=True):
        total += cost[samples, objects].double().sum().item()
    return total


def check(problem: Problem) -> None:
    """Exits where an assignment is not as cheap as the plain one."""
    for plain, matcher in (
        (plain_min_cost, MinCostMatcher()),
        (plain_hungarian, HungarianMatcher()),
    ):
        wanted, found = total_cost(plain(problem), problem), total_cost(matcher(*problem), problem)
        if not np.isclose(wanted, found, rtol=1e-5):
            raise SystemExit(f"error: the assignment of {matcher} costs {found}, not {wanted}")


def extra_memory(pair: str, side: int, shape: Shape, problem: Problem, device: str) -> float:
    """Peak above what was in use before, in MiB, on the device."""
    if device == "cpu":
        return peak_memory(make_call, pair, side, shape)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    PAIRS[pair][side](problem)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def make_call(pair: str, side: int, shape: Shape) -> Callable[[], object]:
    """One side of one of the PAIRS, ready to be called."""
    return functools.partial(PAIRS[pair][side], make_problem(shape, "cpu"))


def needed_bytes(shape: Shape, problem: Problem, with_losses: bool, device: str) -> float:
    """See the script's description."""
    num_images, num_samples, num_classes, _ = shape
    line = 32 if device == "cuda" else 64
    per_line = line // 4
    lines = 0
    for gt in problem[1]:
        # Which lines of a sample's logits hold a class of the image; a row need not start a line
        lines += len({int(c) // per_line for c in gt.gt_classes.tolist()})
    logits = num_samples * min(lines * line, num_images * num_classes * 4)
    boxes = num_images * num_samples * 16
    if not with_losses:
        return logits + boxes
    return logits + boxes + 2 * num_images * num_samples * num_classes * 4 + boxes


def measure(
    shape: Shape, rounds: int, device: str, bandwidth: float, with_memory: bool
) -> list[dict[str, Any]]:
    """Rows for one shape."""
    problem = make_problem(shape, device)
    check(problem)
    ways = {
        (pair, side): functools.partial(call, problem)
        for pair, calls in PAIRS.items()
        for side, call in enumerate(calls)
    }
    times = time_in_turn(ways, rounds, device=device)
    rows = []
    for pair in PAIRS:
        plain, ours = times[pair, 0], times[pair, 1]
        memory = [None, None]
        if with_memory:
            memory = [extra_memory(pair, side, shape, problem, device) for side in (0, 1)]
        rows.append(
            {
                "shape": list(shape),
                "what": pair,
                "plain": quartiles(plain),
                "onenet": quartiles(ours),
                "times_faster": ratios(plain, ours),
                "limit": 1e3 * needed_bytes(shape, problem, "losses" in pair, device) / bandwidth,
                "plain_mib": memory[0],
                "onenet_mib": memory[1],
            }
        )
    return rows


def parse_shape(text: str) -> Shape:
    parts = [int(part) if part.isdecimal() else 0 for part in text.split("x")]
    if len(parts) != 4 or min(parts) < 1 or parts[1] < parts[3]:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not images x samples x classes x objects, with fewer objects than samples"
        )
    return tuple(parts)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--shapes", nargs="+", type=parse_shape, default=[parse_shape(s) for s in SHAPES]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure memory too; on a CPU that takes minutes a shape",
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU")
    bandwidth = copy_bandwidth(args.device)
    rows = []
    for shape in args.shapes:
        rows += measure(shape, args.rounds, args.device, bandwidth, args.memory)
    record(args.json, "assignment", rows, rounds=args.rounds, bytes_per_second_of_copy=bandwidth)


if __name__ == "__main__":
    main()
