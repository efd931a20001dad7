"""What a conversion has done, tensor by tensor; input and files of ImageNet's weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from ...utils.errors import ConfigError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Conversion",
    "Step",
    "check_imagenet_input",
    "check_trained_input",
    "download_cure",
    "hub_file",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in 0..1


@dataclass(frozen=True)
class Step:
    """What was done with one tensor of the file.

    Attributes:
        source: its name in the file.
        source_shape: its shape there.
        target: the name in this project; "" where it was left out.
        target_shape: the shape there.
        action: "kept", "renamed", or why and how else.
    """

    source: str
    source_shape: tuple[int, ...]
    target: str
    target_shape: tuple[int, ...]
    action: str


@dataclass
class Conversion:
    """A converted state dict, and how it came about.

    Attributes:
        origin: whose file it is, for messages.
        fills: prefix of the model's tensors that all have to come from the file; "" for all.
        state: the tensors under this project's names.
        steps: one for each tensor of the file, in its order.
    """

    origin: str
    fills: str = ""
    state: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def take(self, source: str, tensor: Tensor, target: str) -> None:
        """Gives a tensor its name in this project.

        Raises:
            ConfigError: another tensor of the file has that name already.
        """
        if target in self.state:
            raise ConfigError(f"the file has two tensors for {target}, '{source}' and another")
        shape = tuple(tensor.shape)
        action = "kept" if source == target else "renamed"
        self.state[target] = tensor
        self.steps.append(Step(source, shape, target, shape, action))

    def drop(self, source: str, tensor: Tensor, reason: str) -> None:
        """Leaves a tensor out."""
        self.steps.append(Step(source, tuple(tensor.shape), "", (), f"dropped: {reason}"))

    def summary(self) -> str:
        """One line: how many tensors were kept, renamed, joined, dropped."""
        counts = Counter(step.action.split(":")[0] for step in self.steps)
        return f"{len(self.steps)} tensors: " + ", ".join(f"{n} {a}" for a, n in counts.items())

    def table(self) -> str:
        """The report: a line for each tensor of the file, in columns, and the summary."""
        rows = [("file's name", "shape", "name here", "shape", "what was done")]
        for s in self.steps:
            ours = (s.target, _shape(s.target_shape)) if s.target else ("-", "-")
            rows.append((s.source, _shape(s.source_shape), *ours, s.action))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True))
            for row in rows
        ]
        return "\n".join([*lines, "", f"From {self.origin}, {self.summary()}."]) + "\n"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def check_imagenet_input(
    what: str,
    input_format: str,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Checks that images reach pre-trained weights as they did when these were trained.

    Nothing else would tell: with other channels or scales the weights load, and are worth little.

    Args:
        what: whose weights, for the message.
        input_format: INPUT.FORMAT.
        pixel_mean, pixel_std: MODEL.PIXEL_MEAN and PIXEL_STD, in 0..255.
        mean, std: what the weights were trained with, RGB in 0..1.

    Raises:
        ConfigError: the config differs by more than half a grey level.
    """
    wanted_mean = [round(255 * value, 3) for value in mean]
    wanted_std = [round(255 * value, 3) for value in std]
    if (
        input_format == "RGB"
        and np.allclose(pixel_mean, wanted_mean, rtol=0, atol=0.5)
        and np.allclose(pixel_std, wanted_std, rtol=0, atol=0.5)
    ):
        return
    raise ConfigError(
        f"{what} want RGB images with their own mean and deviation, but the config has INPUT.FORMAT"
        f" {input_format}, MODEL.PIXEL_MEAN {_rounded(pixel_mean)} and MODEL.PIXEL_STD"
        f" {_rounded(pixel_std)}; set them to RGB, {wanted_mean} and {wanted_std}."
    )


def check_trained_input(model: nn.Module, what: str, input_format: str | None = None) -> None:
    """Checks colours, normalisation and the place of the stride, which no tensor's shape tells.

    Args:
        model: with ``pixel_mean``, ``pixel_std`` and, if it knows it, ``input_format``.
        what: whose weights, for the message.
        input_format: INPUT.FORMAT; None for the model's own, RGB where it knows none.

    Raises:
        ConfigError: they are not as torchvision's networks were trained.
    """
    check_imagenet_input(
        what,
        input_format or getattr(model, "input_format", "RGB"),  # Detectron2's FCOS has none
        model.pixel_mean.flatten().tolist(),
        model.pixel_std.flatten().tolist(),
    )
    for block in model.modules():
        if isinstance(block, BottleneckBlock) and block.conv1.stride != (1, 1):
            raise ConfigError(
                f"{what} have a bottleneck's stride in its 3x3 convolution; set"
                " MODEL.RESNETS.STRIDE_IN_1X1 to False."
            )


def _hub_folder() -> str:
    return os.path.join(torch.hub.get_dir(), "checkpoints")


def hub_file(url: str) -> str:
    """Path of a published file in torch.hub's folder; downloads it where it is not there.

    Whether a file that is there can be read, is seen when it is.

    Raises:
        OSError, RuntimeError: it cannot be downloaded; see :func:`download_cure`.
    """
    path = os.path.join(_hub_folder(), os.path.basename(urlparse(url).path))
    if not os.path.isfile(path):
        torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
    return path


def download_cure(url: str, error: Exception) -> str:
    """The end of a sentence on weights that cannot be downloaded, without a full stop."""
    return (
        f"cannot be downloaded ({getattr(error, 'reason', error)}); download {url} on a machine"
        f" that can, and put the file into {_hub_folder()}"
    )


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 3) for value in values]
