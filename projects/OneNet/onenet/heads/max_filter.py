"""3D max filtering (DeFCN, arXiv 2012.03544): peaks stand out before the top-k."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MaxFilter"]


class _AnySizeGroupNorm(nn.GroupNorm):
    """Group norm that takes one value a group, on which torch.nn's raises: it becomes the bias."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class MaxFilter(nn.Module):
    """Tells each location by how much it stays below the largest of its neighbours, in place and
    in scale, and lets the class logits use it.

    The towers' features go through a 3x3 convolution with group norm; the largest of a 3x3 window
    on the level itself and on the next finer and coarser one, resized, is subtracted; a 3x3
    convolution makes of that difference one number an anchor, which is added to the logits of all
    classes. (The paper has the box features alone, as many channels, and multiplies the two scores
    instead.) Plain operators, so that it exports.
    """

    def __init__(self, in_channels: int, channels: int, num_anchors: int = 1) -> None:
        """
        Args:
            in_channels: of the features.
            channels: of the filtered maps.
            num_anchors: A, samples a location.
        """
        super().__init__()
        self.num_anchors = num_anchors
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)
        self.norm = _AnySizeGroupNorm(32 if channels % 32 == 0 else 1, channels)
        self.out = nn.Conv2d(channels, num_anchors, kernel_size=3, padding=1)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        nn.init.zeros_(self.out.weight)  # at first the logits stay as they are
        nn.init.zeros_(self.out.bias)

    def forward(self, logits: list[Tensor], features: list[Tensor]) -> list[Tensor]:
        """
        Args:
            logits: (N, A K, H, W) of each level, finest first.
            features: (N, C, H, W) of each level.

        Returns:
            The logits, changed, in the same shapes.
        """
        maps = [F.relu(self.norm(self.conv(x))) for x in features]
        filtered = []
        for i, level in enumerate(logits):
            size = maps[i].shape[-2:]
            near = [
                F.max_pool2d(
                    # Not by comparing sizes, which a trace would fix to those of its example
                    x if x is maps[i] else F.interpolate(x, size=size, mode="bilinear"),
                    kernel_size=3,
                    stride=1,
                    padding=1,
                )
                for x in maps[max(0, i - 1) : i + 2]
            ]
            below = maps[i] - torch.stack(near).amax(dim=0)  # at most 0
            change = self.out(below)  # (N, A, H, W)
            per_class = level.shape[1] // self.num_anchors
            filtered.append(level + change.repeat_interleave(per_class, dim=1))
        return filtered
