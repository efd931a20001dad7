#!/usr/bin/env python
"""Measures what grows: memory with the objects of an image, time with workers, memory of a step.

python benchmarks/scaling.py objects [--samples 22400] [--objects 10 30 100 300 1000] [--plot FILE]
python benchmarks/scaling.py workers [--config ...] [--batch 8] [--size 128] [--steps 20]
python benchmarks/scaling.py step [--config ...] [--batch 8] [--size 128]

* objects: peak memory of matching one image, one class, against the number of its objects: the
  plain formula's matrices (benchmarks/assignment.py) and this project's, Hungarian.
* workers: a training step in one process and in two gloo workers, each with the batch, one thread
  a worker. The efficiency is the time of one by that of two: 1 where the second worker is free.
* step: peak memory and time of a training step, plain, with MODEL.ONENET.CHANNELS_LAST, with
  MODEL.ONENET.ACTIVATION_CHECKPOINTING, and in two and four pieces
  (SOLVER.GRADIENT_ACCUMULATION_STEPS).

All on the CPU, memory in processes of their own, above what was in use before (Linux only).
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

import assignment
from common import describe_machine, describe_ms, peak_memory, ratios, time_in_turn
from onenet.engine.accumulation import AccumulatingModel
from onenet.engine.solver import build_optimizer
from onenet.predictor import load_predictor_config

CONFIG = "configs/digits/recommended_R18_FPN.yaml"


def measure_objects(args: argparse.Namespace) -> None:
    print("| objects | plain, MiB | OneNet's, MiB |\n| --- | --- | --- |")
    rows = []
    for count in args.objects:
        shape = (1, args.samples, 1, count)
        memory = [
            peak_memory(assignment.make_call, "match, Hungarian", side, shape) for side in (0, 1)
        ]
        rows.append((count, *memory))
        print(f"| {count} | {memory[0]:.0f} | {memory[1]:.0f} |", flush=True)
    if args.plot:
        plot(rows, args)


def plot(rows: list[tuple[int, float, float]], args: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    counts, plain, ours = zip(*rows, strict=True)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(counts, plain, "o-", label="plain formula, SciPy on the whole matrix")
    axes.plot(counts, ours, "s-", label="HungarianMatcher")
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("objects in the image")
    axes.set_ylabel("peak memory of matching, MiB")
    axes.set_title(f"{args.samples:,} samples, one class")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.plot, dpi=120)


def make_batch(batch: int, size: int, seed: int) -> list[dict]:
    """Random images with six objects each."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for _ in range(batch):
        corner = torch.rand(6, 2, generator=generator) * 0.7 * size
        extent = 0.1 * size + torch.rand(6, 2, generator=generator) * 0.2 * size
        gt = Instances((size, size))
        gt.gt_boxes = Boxes(torch.cat((corner, corner + extent), dim=1))
        gt.gt_classes = torch.randint(10, (6,), generator=generator)
        image = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "instances": gt})
    return inputs


def build(config: str, *opts: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    cfg = load_predictor_config(
        config,
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ONENET.NUM_CLASSES", "10", *opts],
    )
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    num_pieces = cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS
    if num_pieces > 1:
        model = AccumulatingModel(model, num_pieces, torch.Tensor.backward)
    return model, optimizer


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: list[dict]) -> None:
    sum(model(inputs).values()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def run_worker(args: argparse.Namespace, out: str) -> None:
    """One of the workers; the first writes the milliseconds of each step."""
    torch.set_num_threads(1)
    model, optimizer = build(args.config)
    if comm.get_world_size() > 1:
        model = create_ddp_model(model, device_ids=None)
    inputs = make_batch(args.batch, args.size, seed=comm.get_rank())
    times = []
    for i in range(args.steps + 3):
        comm.synchronize()
        start = time.perf_counter()
        train_step(model, optimizer, inputs)
        comm.synchronize()
        if i >= 3:
            times.append(1000 * (time.perf_counter() - start))
    if comm.is_main_process():
        torch.save(times, out)


def measure_workers(args: argparse.Namespace) -> None:
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "times.pth")
        for _ in range(args.rounds):
            for workers in times:
                launch(run_worker, workers, dist_url="auto", args=(args, out))
                times[workers] += torch.load(out, weights_only=True)
    one, two = (statistics.median(times[n]) for n in (1, 2))
    print("| workers | images a step | ms a step |\n| --- | --- | --- |")
    for workers, values in times.items():
        print(f"| {workers} | {workers * args.batch} | {describe_ms(values)} |")
    print(f"\nEfficiency {one / two:.2f}.")


def make_step(config: str, batch: int, size: int, *opts: str) -> Callable[[], None]:
    model, optimizer = build(config, *opts)
    return functools.partial(train_step, model, optimizer, make_batch(batch, size, 0))


def measure_step(args: argparse.Namespace) -> None:
    ways: dict[str, tuple[str, ...]] = {
        "plain": (),
        "channels last": ("MODEL.ONENET.CHANNELS_LAST", "True"),
        "activation checkpointing": ("MODEL.ONENET.ACTIVATION_CHECKPOINTING", "True"),
    }
    ways |= {
        f"in {count} pieces": ("SOLVER.GRADIENT_ACCUMULATION_STEPS", str(count))
        for count in (2, 4)
        if count <= args.batch
    }
    problem = (args.config, args.batch, args.size)
    calls = {name: make_step(*problem, *opts) for name, opts in ways.items()}
    times = time_in_turn(calls, args.rounds)
    print("| step | ms | of plain's time | peak, MiB |\n| --- | --- | --- | --- |")
    for name, opts in ways.items():
        share = ratios(times[name], times["plain"]).median
        memory = peak_memory(make_step, *problem, *opts)
        print(f"| {name} | {describe_ms(times[name])} | {share:.2f} | {memory:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("objects", "workers", "step"))
    parser.add_argument("--samples", type=int, default=22400)
    parser.add_argument("--objects", nargs="+", type=int, default=[10, 30, 100, 300, 1000])
    parser.add_argument("--plot", help="png file for the memory against the objects")
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{describe_machine('cpu')}\n")
    {"objects": measure_objects, "workers": measure_workers, "step": measure_step}[args.what](args)


if __name__ == "__main__":
    main()
