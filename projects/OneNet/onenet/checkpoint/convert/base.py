"""What a conversion has done, tensor by tensor; the input that ImageNet's weights want."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from ...modeling.backbone.features import check_imagenet_input
from ...utils.errors import ConfigError

__all__ = ["Conversion", "Step", "check_trained_input"]


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
