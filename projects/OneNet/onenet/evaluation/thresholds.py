"""Score thresholds of best F1 for each class, computed by the evaluation.

They are written to ``thresholds.json`` with the digest of the weights, so that they are not used
with another checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import os
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..utils.errors import ConfigError, DataError
from ..utils.files import read_json
from .scenes import Scenes

__all__ = [
    "DEFAULT_THRESHOLD",
    "FILE_NAME",
    "best_threshold",
    "calibrate",
    "find_thresholds",
    "load_thresholds",
    "read_thresholds",
    "weights_digest",
]

FILE_NAME = "thresholds.json"
DEFAULT_THRESHOLD = 0.3  # if no class is calibrated

_MAX_BYTES = 2**26  # thousands of classes take less than 1 MB
_HOW_TO_MAKE = "evaluate the checkpoint (train_net.py --eval-only) to write it anew"


def best_threshold(
    scores: np.ndarray, correct: np.ndarray, num_objects: int
) -> dict[str, float] | None:
    """The threshold of best F1 = 2 TP / (detections kept + objects) of one class.

    Detections with a score >= the threshold are kept. The threshold is midway between the lowest
    score kept and the highest dropped (0 if none is), so that float32 rounding does not change the
    result. Of several thresholds of best F1, the highest is returned.

    Args:
        scores: (D,) float32 in [0, 1], of all images.
        correct: (D,) bool, true positives.
        num_objects: of the class, in all images.

    Returns:
        "threshold" (exact in float32), and "f1", "precision" and "recall" in [0, 1]; None without
        true positives.
    """
    if not correct.any():
        return None
    order = np.argsort(-scores, kind="stable")
    # In float32, in which scores will be compared; the middle of two neighbours is one of them
    falling = np.append(scores[order], 0).astype(np.float32)
    true_positives = np.cumsum(correct[order])
    kept = np.arange(1, len(order) + 1)
    f1 = 2 * true_positives / (kept + num_objects)
    splits_equals = falling[:-1] == falling[1:]
    splits_equals[-1] = False  # the last has no successor
    last = int(np.argmax(np.where(splits_equals, -1.0, f1)))  # the first maximum
    lowest, next_lower = falling[last], falling[last + 1]
    middle = lowest - (lowest - next_lower) / 2
    return {
        "threshold": float(middle if middle > next_lower else lowest),
        "f1": float(f1[last]),
        "precision": float(true_positives[last] / kept[last]),
        "recall": float(true_positives[last] / num_objects),
    }


def calibrate(
    scenes: Scenes, claims: np.ndarray, class_names: Sequence[str], iou_thresh: float
) -> list[dict[str, Any]]:
    """The threshold of best F1 of every class.

    True positives are the claims. As in COCO, detections on crowd regions that claim nothing are
    ignored.

    Args:
        scenes: all images.
        claims: (D,) bool, see :func:`onenet.evaluation.match_detections`.
        class_names: of the K classes.
        iou_thresh: least IoU at which a detection lies on an object.

    Returns:
        For each class "name", "threshold", "f1", "precision", "recall" (see
        :func:`best_threshold`) and "num_objects". The four numbers are None for a class without
        objects or true positives.
    """
    counts = claims | (scenes.crowd_overlaps < iou_thresh)
    scores, classes, correct = scenes.scores[counts], scenes.classes[counts], claims[counts]
    entries = []
    for index, name in enumerate(class_names):
        own, num_objects = classes == index, int((scenes.object_classes == index).sum())
        found = best_threshold(scores[own], correct[own], num_objects)
        nothing = dict.fromkeys(("threshold", "f1", "precision", "recall"))
        entries.append({"name": name, **(found or nothing), "num_objects": num_objects})
    return entries


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of the weights that inference uses; the same on every device.

    Args:
        model: may be wrapped in DDP.

    Returns:
        64 hexadecimal digits.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    digest = hashlib.sha256()
    # Including buffers that are not in checkpoints: pixel mean, anchors
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):  # no result depends on it
            continue
        values = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        # As bytes, since NumPy has no bfloat16
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def find_thresholds(weights_path: str) -> str | None:
    """Finds the thresholds beside a checkpoint, for runs with one test set.

    Args:
        weights_path: a checkpoint in the run's OUTPUT_DIR.

    Returns:
        Path of ``inference/thresholds.json`` beside it; None if it does not exist.
    """
    path = os.path.join(os.path.dirname(weights_path), "inference", FILE_NAME)
    return path if os.path.isfile(path) else None


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    value = entry.get("threshold", "missing")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (is_number and math.isfinite(value) and 0 <= value <= 1)


def read_thresholds(path: str) -> dict[str, Any]:
    """Reads a ``thresholds.json``.

    Args:
        path: of the file.

    Returns:
        "dataset", "iou_thresh", "weights" (a digest, or None) and "classes", see
        :func:`calibrate`.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        content = read_json(path, _MAX_BYTES)
    except DataError as error:
        raise DataError(f"Thresholds: {error}; {_HOW_TO_MAKE}.") from error
    classes = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(classes, list) or not all(_is_entry(entry) for entry in classes):
        raise DataError(
            f"The thresholds {path} are damaged: 'classes' has to be a list with a name and a"
            f" threshold (0 to 1, or null) for each; {_HOW_TO_MAKE}."
        )
    return content


def load_thresholds(path: str, class_names: Sequence[str], digest: str) -> list[float]:
    """Loads the thresholds of a model's classes.

    Args:
        path: of a ``thresholds.json``.
        class_names: the model's K classes.
        digest: of the model's weights, see :func:`weights_digest`.

    Returns:
        K thresholds. A class without one gets the median of the others', or ``DEFAULT_THRESHOLD``.

    Raises:
        DataError: the file is missing or damaged.
        ConfigError: the file is for other classes or weights.
    """
    content = read_thresholds(path)
    names = [entry["name"] for entry in content["classes"]]
    if names != list(class_names):
        raise ConfigError(
            f"The thresholds {path} are of the classes {_shortened(names)}, but the model's are"
            f" {_shortened(class_names)}; {_HOW_TO_MAKE}."
        )
    if content.get("weights") != digest:
        raise ConfigError(
            f"The thresholds {path} are of other weights than the model's; {_HOW_TO_MAKE}."
        )
    found = [entry["threshold"] for entry in content["classes"]]
    known = [value for value in found if value is not None]
    fallback = statistics.median(known) if known else DEFAULT_THRESHOLD
    return [float(fallback if value is None else value) for value in found]


def _shortened(names: Sequence[str], limit: int = 5) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
