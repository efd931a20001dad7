#!/usr/bin/env python
"""Shows each object's positive sample, its cost terms, and the runner-up.

python tools/inspect_assignment.py --config-file configs/digits/onenet_fcos_R18_FPN.yaml \\
    --weights model_final.pth --output output/inspect [KEY value ...]
python tools/inspect_assignment.py ... --weights model_0000499.pth --other-weights model_final.pth

Uses images of DATASETS.TEST with objects. Writes a picture of each (with two checkpoints: first,
second, and the moves between them) and assignments.json with all numbers, and prints tables and a
summary. Pixels are those of the network's input.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.modeling import build_model
from PIL import Image
from tabulate import tabulate

from onenet.checkpoint import load_weights
from onenet.data.mapper import OneNetDatasetMapper
from onenet.engine import load_config
from onenet.engine.class_names import check_class_names, trained_class_names
from onenet.evaluation.inspection import (
    Assignment,
    Move,
    compare_assignments,
    inspect_assignment,
    summarize_assignments,
    summarize_moves,
)
from onenet.evaluation.inspection_pictures import draw_assignment, draw_moves
from onenet.modeling.meta_arch import OneNet
from onenet.utils.errors import ConfigError, DataError, exit_with_one_sentence
from onenet.utils.visualizer import tile


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="a checkpoint of train_net.py")
    parser.add_argument("--other-weights", help="a second one, to see what moves between the two")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--num-images", type=int, default=6, help="the first ones (default: 6)")
    # Not nargs="+", which would also take the overrides
    images.add_argument(
        "--image-ids", type=lambda text: text.split(","), metavar="ID,ID", help="chosen ones"
    )
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY value ...")
    return parser.parse_args(words)


def load_inputs(cfg: CfgNode, num_images: int, image_ids: list[str] | None) -> list[dict[str, Any]]:
    """The images at test size, as inputs of the model, with their objects."""
    if num_images < 1:
        raise ConfigError(f"--num-images is {num_images}; it has to be at least 1.")
    names = ", ".join(cfg.DATASETS.TEST)
    try:
        records = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    except FileNotFoundError as error:
        raise DataError(
            f"The dataset's file {error.filename} is missing; datasets are looked for in the folder"
            " that the environment variable DETECTRON2_DATASETS names."
        ) from error
    if image_ids:
        by_id = {str(record["image_id"]): record for record in reversed(records)}
        for image_id in image_ids:
            if image_id not in by_id:
                raise DataError(f"--image-ids: {names} has no image '{image_id}'.")
        records, num_images = [by_id[image_id] for image_id in image_ids], len(image_ids)
    # The training mapper keeps the objects; its only augmentation is the resize to test size
    mapper = OneNetDatasetMapper(
        is_train=True,
        augmentations=OneNetDatasetMapper.from_config(cfg, is_train=False)["augmentations"],
        image_format=cfg.INPUT.FORMAT,
    )
    chosen = []
    for record in records:
        if len(chosen) == num_images:
            break
        inputs = mapper(record) if record.get("annotations") else {}
        if len(inputs.get("instances", ())):  # crowd regions are not objects
            chosen.append(inputs)
        elif image_ids:
            raise DataError(f"--image-ids: the image '{record['image_id']}' has no objects.")
    if not chosen:
        raise DataError(f"No image of {names} has an object.")
    return chosen


def check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"--output: cannot write into {folder} ({error.strerror}).") from error


def number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}"


def point(values: tuple[float, float], digits: int = 0) -> str:
    return ", ".join(number(value, digits) for value in values)


def print_assignments(
    ids: list[str], assignments: list[list[Assignment]], class_names: list[str]
) -> None:
    rows = []
    for image_id, of_image in zip(ids, assignments, strict=True):
        for a in of_image:
            best, second = a.positive, a.runner_up
            row = {
                "image": image_id,
                "#": a.object_index,
                "class": class_names[a.object_class],
                "stride": best.stride,
                "x, y": point(best.location),
                "distance": number(a.distance, 1),
                "dx/w, dy/h": point(a.relative_offset, 2),
                **{f"{name} cost": number(value) for name, value in best.terms.items()},
                "sum": number(best.cost),
                "score": number(best.score),
                "IoU": number(best.iou),
            }
            if second is not None:
                row["runner-up"] = f"{second.stride}: {point(second.location)}"
                row["margin"] = number(a.margin, 3)
            rows.append(row)
    print(tabulate(rows, headers="keys", disable_numparse=True))


def print_moves(ids: list[str], moves: list[list[Move]]) -> None:
    rows = [
        {
            "image": image_id,
            "#": m.object_index,
            "stride": f"{m.before.stride} to {m.after.stride}" if m.level_change else "same",
            "from x, y": point(m.before.location),
            "to x, y": point(m.after.location),
            "distance": number(m.distance, 1),
            "in strides": number(m.distance_in_strides, 1),
            "cost": f"{number(m.before.cost)} to {number(m.after.cost)}",
            "score": f"{number(m.before.score)} to {number(m.after.score)}",
        }
        for image_id, of_image in zip(ids, moves, strict=True)
        for m in of_image
        if m.moved
    ]
    print(tabulate(rows, headers="keys", disable_numparse=True) if rows else "No sample moved.")


def summary_lines(summary: dict[str, Any]) -> dict[str, str]:
    shares = (f"{stride}: {share:.0%}" for stride, share in summary["share_by_stride"].items())
    return {
        "objects": str(summary["objects"]),
        "positives by stride": ", ".join(shares),
        "mean distance from the centre": f"{summary['distance']:.1f} pixels,"
        f" {summary['relative_distance']:.2f} of the box",
        "mean cost": f"{summary['cost']:.2f} ("
        + " + ".join(f"{name} {value:.2f}" for name, value in summary["terms"].items())
        + ")",
        "mean margin to the runner-up": number(summary["margin"], 3),
        "mean score, IoU": f"{summary['score']:.2f}, {summary['iou']:.2f}",
    }


def moves_line(summary: dict[str, float]) -> str:
    text = f"Of {summary['objects']} objects {summary['moved']:.0%} moved to another sample"
    if summary["moved"]:
        text += (
            f", by {summary['distance']:.1f} pixels or"
            f" {summary['distance_in_strides']:.1f} strides in the mean;"
            f" {summary['to_finer']:.0%} of all went to a finer level,"
            f" {summary['to_coarser']:.0%} to a coarser one"
        )
    return text + "."


def draw(
    inputs: dict[str, Any],
    image_format: str,
    assignments: list[list[Assignment]],
    moves: list[Move],
) -> np.ndarray:
    """Draws the image for each checkpoint, and the moves between two.

    Labels are object and stride, as in the tables.
    """
    image = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), image_format)
    pictures = [
        draw_assignment(
            of_model,
            image,
            labels=[f"{a.object_index}: {a.positive.stride}" for a in of_model],
        )
        for of_model in assignments
    ]
    if len(assignments) == 2:
        labels = [
            f"{m.object_index}: {m.before.stride} to {m.after.stride}"
            if m.level_change
            else str(m.object_index)
            for m in moves
        ]
        pictures.append(draw_moves(moves, image, labels=labels))
    return tile([pictures])


def finite(value: Any) -> Any:
    """Replaces nan and inf by None, since json has neither."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_summaries(checkpoints: list[str], summaries: list[dict[str, Any]]) -> None:
    """A column for each checkpoint."""
    lines = [summary_lines(summary) for summary in summaries]
    rows = [[key, *(of_model[key] for of_model in lines)] for key in lines[0]]
    headers = ["", *(Path(path).name for path in checkpoints)]
    print("\n" + tabulate(rows, headers=headers, disable_numparse=True))


def load_model(args: argparse.Namespace) -> tuple[CfgNode, OneNet]:
    """The config, and a model that is not trained.

    Raises:
        ConfigError: it is no OneNet.
    """
    cfg = load_config(args.config_file, args.opts, eval_only=True)
    model = build_model(cfg).eval()
    if not isinstance(model, OneNet):
        raise ConfigError(
            f"{args.config_file} describes a {cfg.MODEL.META_ARCHITECTURE}; only OneNet assigns"
            " one sample to each object."
        )
    return cfg, model


def inspect(args: argparse.Namespace) -> None:
    cfg, model = load_model(args)
    folder = Path(args.output)
    check_writable(folder)
    images = load_inputs(cfg, args.num_images, args.image_ids)
    ids = [str(inputs["image_id"]) for inputs in images]
    names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes

    checkpoints = [args.weights, *([args.other_weights] if args.other_weights else [])]
    found: list[list[list[Assignment]]] = []  # by checkpoint, then by image
    for path in checkpoints:
        check_class_names(cfg, path, trained_class_names(cfg, path, load_weights(model, path)))
        found.append([inspect_assignment(model, inputs) for inputs in images])
    moves = [compare_assignments(*pair) for pair in zip(*found, strict=True)] if found[1:] else []
    summaries = [summarize_assignments([a for image in of for a in image]) for of in found]

    report: dict[str, Any] = {
        "config_file": args.config_file,
        "weights": checkpoints,
        "class_names": list(names),
        "summaries": summaries,
        "images": [],
    }
    for i, inputs in enumerate(images):
        safe_id = re.sub(r"[^-.\w]", "_", ids[i])  # an id may be a path
        picture = f"{i + 1:02d}_{safe_id}.png"
        of_image = [of_model[i] for of_model in found]
        moves_of_image = moves[i] if moves else []
        pixels = draw(inputs, cfg.INPUT.FORMAT, of_image, moves_of_image)
        Image.fromarray(pixels).save(folder / picture)
        height, width = inputs["image"].shape[1:]
        report["images"].append(
            {
                "image_id": inputs["image_id"],
                "file_name": inputs["file_name"],
                "height": height,
                "width": width,
                "picture": picture,
                "assignments": [[asdict(a) for a in of_model] for of_model in of_image],
                "moves": [asdict(m) for m in moves_of_image],
            }
        )

    for path, of_model in zip(checkpoints, found, strict=True):
        print(f"\n{path}\n")
        print_assignments(ids, of_model, names)
    if moves:
        report["moves_summary"] = summarize_moves([m for image in moves for m in image])
        print(f"\nMoved from {args.weights} to {args.other_weights}\n")
        print_moves(ids, moves)
    print_summaries(checkpoints, summaries)
    if moves:
        print("\n" + moves_line(report["moves_summary"]))
    (folder / "assignments.json").write_text(json.dumps(finite(report), indent=1, allow_nan=False))
    print(
        f"\nPictures and assignments.json: {folder}"
        "\nIn the pictures: object and stride, as in the tables; dot: positive sample; ring:"
        " runner-up, or, with an arrow, where the positive was before."
    )


def main(words: list[str] | None = None) -> None:
    with exit_with_one_sentence():
        inspect(parse_arguments(words))


if __name__ == "__main__":
    main()
