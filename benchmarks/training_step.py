#!/usr/bin/env python
"""Times training steps: what assignment and losses add to the network, and what settings save.

python benchmarks/training_step.py [--config configs/digits/recommended_R18_FPN.yaml] \\
    [--batch 16] [--size 128] [--classes 10] [--objects 6] [--rounds 20] [--device cpu]

In turn, in one run, on random images and objects:

* "trivial loss": forward and backward of the same network, the loss being the sum of its outputs;
* "OneNet": the same network with matching and losses;
* with --optimizer the whole step, with the optimiser (and gradient clipping) of the config, at a
  learning rate of 0, so that all steps are of the same weights;
* with --half under autocast (float16 on a GPU, bfloat16 on a CPU), and with --set settings like
  MODEL.ONENET.CHANNELS_LAST True; both apply to all rows.

The ratio is that of OneNet's step to the trivial one. On a GPU the steps' peak memory is measured,
too. With --profile the longest operators of matching and losses follow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch.profiler import ProfilerActivity, profile

from common import make_parser, quartiles, ratios, record, time_in_turn
from onenet.engine.solver import build_optimizer
from onenet.predictor import load_predictor_config
from onenet.structures import DensePredictions


def make_batch(args: argparse.Namespace) -> tuple[torch.Tensor, list[Instances]]:
    """Images and objects, on the device."""
    generator = torch.Generator().manual_seed(0)
    size = args.size
    images = torch.randint(256, (args.batch, 3, size, size), generator=generator)
    gts = []
    for _ in range(args.batch):
        corner = torch.rand(args.objects, 2, generator=generator) * 0.7 * size
        extent = 0.1 * size + torch.rand(args.objects, 2, generator=generator) * 0.2 * size
        gt = Instances(
            (size, size),
            gt_boxes=Boxes(torch.cat((corner, corner + extent), dim=1)),
            gt_classes=torch.randint(args.classes, (args.objects,), generator=generator),
        )
        gts.append(gt.to(args.device))
    return images.float().to(args.device), gts


def make_steps(args: argparse.Namespace, model: nn.Module) -> dict[str, Callable[[], object]]:
    """Forward and backward, with either loss."""
    images, gts = make_batch(args)
    dtype = torch.float16 if args.device == "cuda" else torch.bfloat16
    sizes = [(args.size, args.size)] * args.batch
    optimizer = build_optimizer(args.cfg, model) if args.optimizer else None
    for group in optimizer.param_groups if optimizer else []:
        group["lr"] = 0.0  # the trivial loss has no minimum: the network would leave its range

    def predict() -> tuple[list[torch.Tensor], object]:
        pixels = (images - model.pixel_mean) / model.pixel_std
        features = model.backbone(pixels)
        features = [features[name] for name in model.head_in_features]
        return features, model.head(features)

    def finish(loss: torch.Tensor) -> None:
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    def trivial() -> None:
        with torch.autocast(args.device, dtype, enabled=args.half):
            _, predictions = predict()
        outputs = [predictions.pred_logits, predictions.pred_boxes]
        finish(sum(x.float().sum() for x in outputs) * 1e-3)  # whose gradient float16 can hold

    def onenet() -> None:
        with torch.autocast(args.device, dtype, enabled=args.half):
            features, predictions = predict()
            losses = model.forward_training(ImageList(images, sizes), features, predictions, gts)
        finish(sum(losses.values()))

    return {"trivial loss": trivial, "OneNet": onenet}


def profile_losses(args: argparse.Namespace, model: nn.Module) -> str:
    """The longest operators of matching and losses, forward and backward."""
    images, gts = make_batch(args)
    pixels = (images - model.pixel_mean) / model.pixel_std
    features = model.backbone(pixels)
    predictions = model.head([features[name] for name in model.head_in_features])

    def cut(x: torch.Tensor) -> torch.Tensor:
        return x.detach().requires_grad_()

    predictions = DensePredictions.from_boxes(
        cut(predictions.pred_logits),
        cut(predictions.pred_boxes),
        predictions.anchors,
        predictions.level_sizes,
    )
    activities = [ProfilerActivity.CPU]
    if args.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    for _ in range(2):  # the first warms up
        with profile(activities=activities) as result:
            sum(model.forward_training(None, [], predictions, gts).values()).backward()
            if args.device == "cuda":
                torch.cuda.synchronize()
    key = "self_cuda_time_total" if args.device == "cuda" else "self_cpu_time_total"
    return result.key_averages().table(sort_by=key, row_limit=12, max_name_column_width=40)


def peak(step: Callable[[], object]) -> float:
    """MiB of the GPU in a step, weights included."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 2**20


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/digits/recommended_R18_FPN.yaml")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--objects", type=int, default=6, help="of each image")
    parser.add_argument("--rounds", type=int, default=20, help="(default: 20; few say little)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--optimizer", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--set", nargs="+", default=[], metavar=("KEY", "VALUE"))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU")
    return args


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(0)
    args.cfg = load_predictor_config(
        args.config,
        [
            *("MODEL.ONENET.NUM_CLASSES", str(args.classes)),
            *("MODEL.DEVICE", args.device),
            *("MODEL.WEIGHTS", ""),
            *args.set,
        ],
    )
    model = build_model(args.cfg).train()
    steps = make_steps(args, model)
    times = time_in_turn(steps, args.rounds, device=args.device)
    mib = {}
    if args.device == "cuda":
        mib = {"trivial_mib": peak(steps["trivial loss"]), "onenet_mib": peak(steps["OneNet"])}
    switches = [x for x in ("half", "optimizer") if getattr(args, x)]
    step = f"{args.batch} x {args.size} pixels, {args.objects} objects"
    row = {
        "config": args.config,
        "step": ", ".join([step, *switches, *([" ".join(args.set)] if args.set else [])]),
        "trivial": quartiles(times["trivial loss"]),
        "onenet": quartiles(times["OneNet"]),
        "ratio": ratios(times["OneNet"], times["trivial loss"]),
        **mib,
    }
    record(args.json, "training_step", [row], rounds=args.rounds)
    if args.profile:
        print(f"\n{profile_losses(args, model)}")


if __name__ == "__main__":
    main()
