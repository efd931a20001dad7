"""What packages hand each other: dense predictions, targets, matched pairs, candidates."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

__all__ = [
    "Candidates",
    "DenseBoxes",
    "DensePredictions",
    "Matches",
    "Targets",
    "take_samples",
    "to_device",
]


class DenseBoxes:
    """A box at every sample, of which no more are decoded than are asked for."""

    def __init__(
        self,
        codes: Tensor,
        anchors: Tensor,
        decode: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            codes: (N, M, C) what the box predictor says of each sample.
            anchors: (M, 4) corners of the samples' anchors, float32.
            decode: from codes (N, k, C), and the anchors of the same samples, (k, 4) or (N, k, 4),
                to corners (N, k, 4), each sample on its own; None where codes are corners already.
        """
        self.codes, self.anchors, self.decode = codes, anchors, decode

    @cached_property
    def corners(self) -> Tensor:
        """(N, M, 4) of all samples; see :attr:`DensePredictions.pred_boxes`."""
        if self.decode is None:
            return self.codes
        # They are kept: a matcher, which has no need for gradients, may be the first to ask
        with torch.set_grad_enabled(self.codes.requires_grad):
            return self.decode(self.codes, self.anchors)

    def at(self, samples: Tensor) -> Tensor:
        """The corners of some samples, (N, k, 4).

        Args:
            samples: (N, k) int64 indices, of each image's.
        """
        codes = take_samples(self.codes, samples)
        return codes if self.decode is None else self.decode(codes, self.anchors[samples])


class DensePredictions(NamedTuple):
    """What a head says of a batch of ``N`` images, at ``M`` samples, in ``K`` classes.

    Samples of all pyramid levels lie one behind the other, finest level first; within a level by
    row, column and, where a location has several, anchor.
    """

    pred_logits: Tensor
    """(N, M, K) class logits, before the sigmoid."""
    boxes: DenseBoxes
    """The box of every sample."""
    level_sizes: tuple[int, ...]
    """Number of samples of each level; they add up to M."""

    @classmethod
    def from_boxes(
        cls,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        anchors: Tensor,
        level_sizes: tuple[int, ...],
    ) -> DensePredictions:
        """Predictions whose boxes are decoded; arguments are as the attributes of their names."""
        return cls(pred_logits, DenseBoxes(pred_boxes, anchors), level_sizes)

    @property
    def pred_boxes(self) -> Tensor:
        """(N, M, 4) corners ``x1, y1, x2, y2`` in pixels of the network's input, not clipped."""
        return self.boxes.corners

    @property
    def anchors(self) -> Tensor:
        """(M, 4) corners of the samples' anchors, float32. A point is a square of its level's
        stride, centred at the sample's location."""
        return self.boxes.anchors

    def detach(self) -> DensePredictions:
        """The same without gradient."""
        boxes = self.boxes
        detached = DenseBoxes(boxes.codes.detach(), boxes.anchors, boxes.decode)
        return self._replace(pred_logits=self.pred_logits.detach(), boxes=detached)

    def in_float32(self) -> DensePredictions:
        """The same in float32, with all boxes decoded."""
        boxes = DenseBoxes(self.pred_boxes.float(), self.anchors)
        return self._replace(pred_logits=self.pred_logits.float(), boxes=boxes)


class Candidates(NamedTuple):
    """The T best-scoring (class, sample) pairs of each of N images, best first."""

    logits: Tensor
    """(N, T)."""
    index: Tensor
    """(N, T) int64 of each among an image's M x K: sample x K + class."""
    classes: Tensor
    """(N, T) int64, in [0, K)."""
    boxes: Tensor
    """(N, T, 4) corners in pixels."""


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copies from the host without waiting for what the device is still doing."""
    on_gpu = device.type == "cuda"
    return (x.pin_memory() if on_gpu else x).to(device, non_blocking=on_gpu)


class Targets(NamedTuple):
    """All T objects of a batch of N images, by image, in the order of its Instances."""

    instances: list[Instances]
    """The N Instances that they are of."""
    boxes: Tensor
    """(T, 4) corners ``x1, y1, x2, y2`` in pixels, float32."""
    classes: Tensor
    """(T,) int64, in [0, K)."""
    images: Tensor
    """(T,) int64: the image of each."""
    scales: Tensor
    """(T, 4) float32: width, height, width, height of its image in pixels, before padding."""

    @classmethod
    def from_instances(cls, instances: list[Instances], device: torch.device) -> Targets:
        """Puts them together, without waiting for the device.

        Args:
            instances: with ``gt_boxes`` and ``gt_classes``, on the device.
            device: where all lie.
        """
        per_image = [(*gt.image_size[::-1], *gt.image_size[::-1]) for gt in instances]
        images = [i for i, gt in enumerate(instances) for _ in range(len(gt))]
        table = torch.tensor([(i, *per_image[i]) for i in images], dtype=torch.float32)
        table = table.reshape(len(images), 5)
        table = to_device(table, device)
        return cls(
            instances,
            torch.cat([gt.gt_boxes.tensor for gt in instances]).float(),
            torch.cat([gt.gt_classes for gt in instances]),
            table[:, 0].long(),
            table[:, 1:],
        )

    @property
    def counts(self) -> list[int]:
        """The number of objects of each image."""
        return [len(gt) for gt in self.instances]


class Matches(NamedTuple):
    """The matched pairs of a batch, by object. Each is an int64 vector of length P."""

    images: Tensor
    """The image of each pair."""
    samples: Tensor
    """Its sample, in [0, M)."""
    objects: Tensor
    """Its object, in [0, T): the batch's objects one behind the other."""

    def by_image(self, counts: list[int]) -> list[tuple[Tensor, Tensor]]:
        """For each image its pairs' ``(sample_indices, gt_indices)``; the latter count its own
        objects and ascend.

        Args:
            counts: the number of objects of each image.
        """
        sizes = torch.bincount(self.images, minlength=len(counts)).tolist()
        starts = np.cumsum([0, *counts])[:-1].tolist()
        parts = zip(self.samples.split(sizes), self.objects.split(sizes), starts, strict=True)
        return [(samples, objects - start) for samples, objects, start in parts]


def take_samples(values: Tensor, samples: Tensor) -> Tensor:
    """Rows of each image's values: (N, M, C) at the samples (N, k) gives (N, k, C)."""
    return values.gather(1, samples.unsqueeze(-1).expand(-1, -1, values.shape[2]))
