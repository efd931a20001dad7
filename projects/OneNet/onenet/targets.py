"""The objects of a batch, one behind the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["Targets", "to_device"]


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
    def of(cls, instances: list[Instances], device: torch.device) -> Targets:
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
