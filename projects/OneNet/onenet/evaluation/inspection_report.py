"""Report of an inspection: the images, tables of the assignments, pictures, and a json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.detection_utils import convert_image_to_rgb
from PIL import Image
from tabulate import tabulate

from ..data.mapper import OneNetDatasetMapper
from ..utils.errors import ConfigError, DataError
from ..utils.visualizer import tile
from .inspection import (
    Assignment,
    Move,
    compare_assignments,
    summarize_assignments,
    summarize_moves,
)
from .inspection_pictures import draw_assignment, draw_moves

__all__ = ["load_inputs", "report"]


def load_inputs(
    cfg: CfgNode, num_images: int, image_ids: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Images of DATASETS.TEST with objects, at test size, as inputs of the model.

    Args:
        cfg: its test set is registered.
        num_images: the first ones.
        image_ids: chosen ones instead; None for none.

    Raises:
        ConfigError, DataError: there are no such images.
    """
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


def report(
    images: Sequence[dict[str, Any]],
    checkpoints: Sequence[str],
    found: Sequence[Sequence[list[Assignment]]],
    class_names: Sequence[str],
    image_format: str,
    folder: Path,
) -> None:
    """Prints tables, and writes a picture of each image and ``assignments.json``.

    Args:
        images: from :func:`load_inputs`.
        checkpoints: paths of one or two.
        found: the assignments by checkpoint, then by image.
        class_names: of the K classes.
        image_format: INPUT.FORMAT, "RGB" or "BGR".
        folder: that exists.
    """
    ids = [str(inputs["image_id"]) for inputs in images]
    moves = [compare_assignments(*pair) for pair in zip(*found, strict=True)] if found[1:] else []
    summaries = [summarize_assignments([a for image in of for a in image]) for of in found]
    content: dict[str, Any] = {
        "weights": list(checkpoints),
        "class_names": list(class_names),
        "summaries": summaries,
        "images": [],
    }
    for i, inputs in enumerate(images):
        safe_id = re.sub(r"[^-.\w]", "_", ids[i])  # an id may be a path
        picture = f"{i + 1:02d}_{safe_id}.png"
        of_image = [of_model[i] for of_model in found]
        moves_of_image = moves[i] if moves else []
        pixels = _draw(inputs, image_format, of_image, moves_of_image)
        Image.fromarray(pixels).save(folder / picture)
        height, width = inputs["image"].shape[1:]
        content["images"].append(
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
        _print_assignments(ids, of_model, class_names)
    if moves:
        content["moves_summary"] = summarize_moves([m for image in moves for m in image])
        print(f"\nMoved from {checkpoints[0]} to {checkpoints[1]}\n")
        _print_moves(ids, moves)
    _print_summaries(checkpoints, summaries)
    if moves:
        print("\n" + _moves_line(content["moves_summary"]))
    text = json.dumps(_finite(content), indent=1, allow_nan=False)
    (folder / "assignments.json").write_text(text)


def _draw(
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


def _finite(value: Any) -> Any:
    """Replaces nan and inf by None, since json has neither."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}"


def _point(values: tuple[float, float], digits: int = 0) -> str:
    return ", ".join(_number(value, digits) for value in values)


def _print_assignments(
    ids: Sequence[str], assignments: Sequence[list[Assignment]], class_names: Sequence[str]
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
                "x, y": _point(best.location),
                "distance": _number(a.distance, 1),
                "dx/w, dy/h": _point(a.relative_offset, 2),
                **{f"{name} cost": _number(value) for name, value in best.terms.items()},
                "sum": _number(best.cost),
                "score": _number(best.score),
                "IoU": _number(best.iou),
            }
            if second is not None:
                row["runner-up"] = f"{second.stride}: {_point(second.location)}"
                row["margin"] = _number(a.margin, 3)
            rows.append(row)
    print(tabulate(rows, headers="keys", disable_numparse=True))


def _print_moves(ids: Sequence[str], moves: Sequence[list[Move]]) -> None:
    rows = [
        {
            "image": image_id,
            "#": m.object_index,
            "stride": f"{m.before.stride} to {m.after.stride}" if m.level_change else "same",
            "from x, y": _point(m.before.location),
            "to x, y": _point(m.after.location),
            "distance": _number(m.distance, 1),
            "in strides": _number(m.distance_in_strides, 1),
            "cost": f"{_number(m.before.cost)} to {_number(m.after.cost)}",
            "score": f"{_number(m.before.score)} to {_number(m.after.score)}",
        }
        for image_id, of_image in zip(ids, moves, strict=True)
        for m in of_image
        if m.moved
    ]
    print(tabulate(rows, headers="keys", disable_numparse=True) if rows else "No sample moved.")


def _summary_lines(summary: dict[str, Any]) -> dict[str, str]:
    shares = (f"{stride}: {share:.0%}" for stride, share in summary["share_by_stride"].items())
    return {
        "objects": str(summary["objects"]),
        "positives by stride": ", ".join(shares),
        "mean distance from the centre": f"{summary['distance']:.1f} pixels,"
        f" {summary['relative_distance']:.2f} of the box",
        "mean cost": f"{summary['cost']:.2f} ("
        + " + ".join(f"{name} {value:.2f}" for name, value in summary["terms"].items())
        + ")",
        "mean margin to the runner-up": _number(summary["margin"], 3),
        "mean score, IoU": f"{summary['score']:.2f}, {summary['iou']:.2f}",
    }


def _moves_line(summary: dict[str, float]) -> str:
    text = f"Of {summary['objects']} objects {summary['moved']:.0%} moved to another sample"
    if summary["moved"]:
        text += (
            f", by {summary['distance']:.1f} pixels or"
            f" {summary['distance_in_strides']:.1f} strides in the mean;"
            f" {summary['to_finer']:.0%} of all went to a finer level,"
            f" {summary['to_coarser']:.0%} to a coarser one"
        )
    return text + "."


def _print_summaries(checkpoints: Sequence[str], summaries: Sequence[dict[str, Any]]) -> None:
    """A column for each checkpoint."""
    lines = [_summary_lines(summary) for summary in summaries]
    rows = [[key, *(of_model[key] for of_model in lines)] for key in lines[0]]
    headers = ["", *(Path(path).name for path in checkpoints)]
    print("\n" + tabulate(rows, headers=headers, disable_numparse=True))
