"""Types shared across the package: dense predictions, targets, matches, candidates."""

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
    """Boxes of all samples, decoded on demand."""

    def __init__(
        self,
        codes: Tensor,
        anchors: Tensor,
        decode: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            codes: (N, M, C) raw outputs of the box predictor.
            anchors: (M, 4) corners of the samples' anchors, float32.
            decode: maps codes (N, k, C) and their anchors, (k, 4) or (N, k, 4), to corners
                (N, k, 4), each sample on its own; None if codes are corners.
        """
        self.codes, self.anchors, self.decode = codes, anchors, decode

    @cached_property
    def corners(self) -> Tensor:
        """(N, M, 4) corners of all samples; see :attr:`DensePredictions.pred_boxes`."""
        if self.decode is None:
            return self.codes
        # The result is cached, so it needs gradients even if a matcher without them asks first
        with torch.set_grad_enabled(self.codes.requires_grad):
            return self.decode(self.codes, self.anchors)

    def at(self, samples: Tensor) -> Tensor:
        """Decodes the boxes of some samples.

        Args:
            samples: (N, k) int64, indices of each image's samples.

        Returns:
            (N, k, 4) corners.
        """
        codes = take_samples(self.codes, samples)
        return codes if self.decode is None else self.decode(codes, self.anchors[samples])


class DensePredictions(NamedTuple):
    """A head's output for ``N`` images, ``M`` samples and ``K`` classes.

    Samples of all pyramid levels are concatenated, finest level first; within a level they are
    ordered by row, column and anchor.
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
        """Builds predictions from decoded boxes; arguments as the attributes of the same names."""
        return cls(pred_logits, DenseBoxes(pred_boxes, anchors), level_sizes)

    @property
    def pred_boxes(self) -> Tensor:
        """(N, M, 4) corners ``x1, y1, x2, y2`` in pixels of the network's input, not clipped."""
        return self.boxes.corners

    @property
    def anchors(self) -> Tensor:
        """(M, 4) corners of the samples' anchors, float32. A point's anchor is a square centred at
        the sample's location, its side the level's stride."""
        return self.boxes.anchors

    def detach(self) -> DensePredictions:
        """Returns a copy without gradients."""
        boxes = self.boxes
        detached = DenseBoxes(boxes.codes.detach(), boxes.anchors, boxes.decode)
        return self._replace(pred_logits=self.pred_logits.detach(), boxes=detached)

    def in_float32(self) -> DensePredictions:
        """Returns a copy in float32, with all boxes decoded."""
        boxes = DenseBoxes(self.pred_boxes.float(), self.anchors)
        return self._replace(pred_logits=self.pred_logits.float(), boxes=boxes)


class Candidates(NamedTuple):
    """The T best-scoring (sample, class) pairs of each of N images, best first."""

    logits: Tensor
    """(N, T) class logits."""
    index: Tensor
    """(N, T) int64 flat indices into an image's M x K logits: sample x K + class."""
    classes: Tensor
    """(N, T) int64, in [0, K)."""
    boxes: Tensor
    """(N, T, 4) corners in pixels."""


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor from the host to a device without synchronising."""
    on_gpu = device.type == "cuda"
    return (x.pin_memory() if on_gpu else x).to(device, non_blocking=on_gpu)


class Targets(NamedTuple):
    """All T ground-truth objects of N images, in the order of the images' Instances."""

    instances: list[Instances]
    """The N Instances that hold the objects."""
    boxes: Tensor
    """(T, 4) corners ``x1, y1, x2, y2`` in pixels, float32."""
    classes: Tensor
    """(T,) int64, in [0, K)."""
    images: Tensor
    """(T,) int64: the index of each object's image."""
    scales: Tensor
    """(T, 4) float32: width, height, width, height of each object's image in pixels, unpadded."""

    @classmethod
    def from_instances(cls, instances: list[Instances], device: torch.device) -> Targets:
        """Concatenates the objects of all images, without waiting for the device.

        Args:
            instances: with ``gt_boxes`` and ``gt_classes``, on the device.
            device: of the instances and the result.
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
    """The P matched (sample, object) pairs of a batch, as int64 vectors of length P."""

    images: Tensor
    """Index of each pair's image."""
    samples: Tensor
    """Sample, in [0, M)."""
    objects: Tensor
    """Object, in [0, T): an index into the batch's :class:`Targets`."""

    def by_image(self, counts: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Splits the pairs by image.

        Args:
            counts: the number of objects of each image.

        Returns:
            For each image ``(sample_indices, gt_indices)``, where ``gt_indices`` count the objects
            of that image.
        """
        sizes = torch.bincount(self.images, minlength=len(counts)).tolist()
        starts = np.cumsum([0, *counts])[:-1].tolist()
        parts = zip(self.samples.split(sizes), self.objects.split(sizes), starts, strict=True)
        return [(samples, objects - start) for samples, objects, start in parts]


def take_samples(values: Tensor, samples: Tensor) -> Tensor:
    """Gathers values (N, M, C) at samples (N, k): (N, k, C)."""
    return values.gather(1, samples.unsqueeze(-1).expand(-1, -1, values.shape[2]))
