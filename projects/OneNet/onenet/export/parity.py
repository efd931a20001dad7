"""Parity check: compares an exported file with the model on real images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor, nn

from ..modeling.meta_arch import OneNet
from ..modeling.postprocess import to_instances
from .formats import Runner

__all__ = ["Difference", "ExportedDetector", "compare_detections", "compare_on_images"]


class ExportedDetector(nn.Module):
    """An exported file with the interface of a Detectron2 model, for example for evaluators."""

    def __init__(self, run: Runner, size_divisibility: int) -> None:
        """
        Args:
            run: from :func:`onenet.export.formats.open_exported`.
            size_divisibility: the batch's height and width are padded to multiples of this.
        """
        super().__init__()
        self.run = run
        self.size_divisibility = size_divisibility

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """As :meth:`onenet.modeling.meta_arch.OneNet.forward` in inference."""
        images, sizes = pad_batch([x["image"] for x in batched_inputs], self.size_divisibility)
        outputs = self.run(images, sizes)
        boxes, scores, classes = (torch.from_numpy(x) for x in outputs)
        results = []
        detections = to_instances(scores, classes, boxes, [(h, w) for h, w in sizes.tolist()])
        for inputs, instances in zip(batched_inputs, detections, strict=True):
            height, width = instances.image_size
            height, width = inputs.get("height", height), inputs.get("width", width)
            results.append({"instances": detector_postprocess(instances, height, width)})
        return results


def pad_batch(images: list[Tensor], size_divisibility: int) -> tuple[np.ndarray, np.ndarray]:
    """Builds the inputs of an exported file.

    Args:
        images: (3, h, w) uint8 each.
        size_divisibility: the batch's height and width are multiples of this.

    Returns:
        images (N, H, W, 3) uint8, padded with zeros, and image_sizes (N, 2) int64.
    """
    sizes = np.array([image.shape[1:] for image in images], dtype=np.int64)
    height, width = -(-sizes.max(axis=0) // size_divisibility) * size_divisibility
    batch = np.zeros((len(images), height, width, 3), dtype=np.uint8)
    for slot, image in zip(batch, images, strict=True):
        slot[: image.shape[1], : image.shape[2]] = image.permute(1, 2, 0).numpy()
    return batch, sizes


@dataclass(frozen=True)
class Difference:
    """Difference between the results of two detectors.

    Attributes:
        box: largest difference of a coordinate, divided by the image's longer side.
        score: largest difference of scores of equal rank.
        unmatched: number of detections of either without a partner in the other.
        compared: number of the first's detections with a partner; if 0, nothing was compared.
    """

    box: float = 0.0
    score: float = 0.0
    unmatched: int = 0
    compared: int = 0

    def join(self, other: Difference) -> Difference:
        """Combines two: the larger differences and the sums of the counts."""
        return Difference(
            max(self.box, other.box),
            max(self.score, other.score),
            self.unmatched + other.unmatched,
            self.compared + other.compared,
        )


def compare_detections(ours: Instances, theirs: Instances, score_tolerance: float) -> Difference:
    """Compares two results on one image.

    A detection's partner is the nearest box of its class whose score differs by at most the
    tolerance, since nearly equal scores may swap ranks. Detections that score close to the last one
    have no certain partner, and only their scores are compared.

    Args:
        ours, theirs: results for an image, best first.
        score_tolerance: largest score difference of partners.
    """
    ranks = min(len(ours), len(theirs))
    score = (ours.scores[:ranks].float() - theirs.scores[:ranks].float()).abs()
    score = score.nan_to_num(nan=torch.inf)  # Python's max() would ignore NaN
    distances, missing = _partners(ours, theirs, score_tolerance)
    _, missing_of_theirs = _partners(theirs, ours, score_tolerance)
    return Difference(
        box=distances.max().item() / max(ours.image_size) if len(distances) else 0.0,
        score=score.max().item() if ranks else 0.0,
        unmatched=missing + missing_of_theirs,
        compared=len(distances),
    )


def _partners(a: Instances, b: Instances, score_tolerance: float) -> tuple[Tensor, int]:
    """Distances in pixels (largest of the four coordinates) of ``a``'s detections to their partners
    in ``b``, and the number without a partner, for those that score clearly above the last one.
    """
    if not len(a):
        return torch.zeros(0), 0
    certain = a.scores > a.scores[-1] + 2 * score_tolerance
    if not len(b):
        return torch.zeros(0), int(certain.sum())
    a = a[certain]
    distance = (a.pred_boxes.tensor[:, None] - b.pred_boxes.tensor[None]).abs().amax(dim=2)
    related = (a.pred_classes[:, None] == b.pred_classes[None]) & (
        (a.scores[:, None] - b.scores[None]).abs() <= score_tolerance
    )
    nearest = distance.masked_fill(~related, torch.inf).amin(dim=1)
    return nearest[nearest.isfinite()], int((~nearest.isfinite()).sum())


@torch.no_grad()
def compare_on_images(
    model: OneNet, exported: ExportedDetector, images: list[Tensor], score_tolerance: float
) -> Difference:
    """Runs model and file on the same batch and compares their results.

    Args:
        model: the reference.
        exported: the file.
        images: the batch, (3, h, w) uint8 each, of any sizes.
        score_tolerance: see :func:`compare_detections`.
    """
    inputs = [{"image": image} for image in images]
    ours = [x["instances"].to("cpu") for x in model(inputs)]
    theirs = [x["instances"] for x in exported(inputs)]
    difference = Difference()
    for a, b in zip(ours, theirs, strict=True):
        difference = difference.join(compare_detections(a, b, score_tolerance))
    return difference
