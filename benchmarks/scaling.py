#!/usr/bin/env python
"""Measures a training step with other settings, and in one and two workers.

python benchmarks/scaling.py step [--config ...] [--batch 8] [--size 128] [--rounds 10]
python benchmarks/scaling.py workers [--config ...] [--batch 8] [--size 128] [--rounds 20]

* workers: a training step in one process and in two gloo workers, each with the batch, one thread
  a worker. The ratio is 1 where the second worker is free.
* step: peak memory and time of a training step, plain, with MODEL.ONENET.CHANNELS_LAST, with
  MODEL.ONENET.ACTIVATION_CHECKPOINTING, and in two and four pieces
  (SOLVER.GRADIENT_ACCUMULATION_STEPS).

All on the CPU, memory in processes of their own, above what was in use before (Linux only).
"""

from __future__ import annotations

import argparse
import functools
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

from common import make_parser, peak_memory, quartiles, ratios, record, time_in_turn
from onenet.engine.accumulation import AccumulatingModel
from onenet.engine.solver import build_optimizer
from onenet.predictor import load_predictor_config

CONFIG = "configs/digits/recommended_R18_FPN.yaml"
WARM_UP = 3


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
    for i in range(WARM_UP + args.rounds):
        comm.synchronize()
        start = time.perf_counter()
        train_step(model, optimizer, inputs)
        comm.synchronize()
        if i >= WARM_UP:
            times.append(1000 * (time.perf_counter() - start))
    if comm.is_main_process():
        torch.save(times, out)


def measure_workers(args: argparse.Namespace) -> None:
    times: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "times.pth")
        for workers in (1, 2):
            launch(run_worker, workers, dist_url="auto", args=(args, out))
            times[workers] = torch.load(out, weights_only=True)
    rows = [
        {
            "what": f"{workers} worker{'s' * (workers > 1)}",
            "milliseconds": quartiles(values),
            "ratio": ratios(values, times[1]),
        }
        for workers, values in times.items()
    ]
    title = f"Training step, {describe(args)} a worker, one thread each"
    record(args.json, "settings", rows, title=title)


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
    rows = [
        {
            "what": name,
            "milliseconds": quartiles(times[name]),
            "ratio": ratios(times[name], times["plain"]),
            "mib": peak_memory(make_step, *problem, *opts),
        }
        for name, opts in ways.items()
    ]
    record(args.json, "settings", rows, title=f"Training step, {describe(args)}")


def describe(args: argparse.Namespace) -> str:
    return f"{Path(args.config).stem}, {args.batch} images of {args.size} pixels"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=("workers", "step"))
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--rounds", type=int, help="(default: 10 of steps, 20 of workers)")
    args = parser.parse_args()
    measure, rounds = {"workers": (measure_workers, 20), "step": (measure_step, 10)}[args.what]
    args.rounds = args.rounds or rounds
    measure(args)


if __name__ == "__main__":
    main()
