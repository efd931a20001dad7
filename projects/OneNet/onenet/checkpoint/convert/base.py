"""The report of a conversion, and checks of the model that it is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from detectron2.data import MetadataCatalog
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from ...modeling.backbone.features import check_imagenet_input
from ...utils.errors import ConfigError

__all__ = [
    "Conversion",
    "Step",
    "check_settings",
    "check_trained_input",
    "coco_classes",
    "compare_anchors",
]

_ANCHOR_TOLERANCE = 0.5  # pixels: configs round anchor sizes


@dataclass(frozen=True)
class Step:
    """The conversion of one tensor.

    Attributes:
        source: name in the file.
        source_shape: shape in the file.
        target: name in this project; "" if dropped.
        target_shape: shape in this project.
        action: "kept", "renamed", "joined: ...", "cut: ..." or "dropped: <reason>".
    """

    source: str
    source_shape: tuple[int, ...]
    target: str
    target_shape: tuple[int, ...]
    action: str


@dataclass
class Conversion:
    """A converted state dict and its report.

    Attributes:
        origin: description of the file, for messages.
        fills: prefix of the model's tensors that must all be in the file; "" for all.
        class_names: K names in the order of the class predictor; None if unknown.
        state: tensors by their names in this project.
        steps: one for each tensor of the file, in its order.
    """

    origin: str
    fills: str = ""
    class_names: list[str] | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def take(self, source: str, tensor: Tensor, target: str) -> None:
        """Adds a tensor under its name in this project.

        Raises:
            ConfigError: the name is taken by another tensor of the file.
        """
        if target in self.state:
            raise ConfigError(f"the file has two tensors for {target}, '{source}' and another")
        shape = tuple(tensor.shape)
        action = "kept" if source == target else "renamed"
        self.state[target] = tensor
        self.steps.append(Step(source, shape, target, shape, action))

    def cut(self, source: str, tensor: Tensor, target: str, rows: list[int], what: str) -> None:
        """Adds some rows of a tensor; ``what`` describes them."""
        self.take(source, tensor[rows], target)
        shape = tuple(tensor.shape)
        self.steps[-1] = replace(self.steps[-1], source_shape=shape, action=f"cut: {what}")

    def drop(self, source: str, tensor: Tensor, reason: str) -> None:
        """Records a dropped tensor."""
        self.steps.append(Step(source, tuple(tensor.shape), "", (), f"dropped: {reason}"))

    def summary(self) -> str:
        """One line with the numbers of tensors kept, renamed, joined, cut and dropped."""
        counts = Counter(step.action.split(":")[0] for step in self.steps)
        return f"{len(self.steps)} tensors: " + ", ".join(f"{n} {a}" for a, n in counts.items())

    def table(self) -> str:
        """The report: a line for each tensor, and the summary."""
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


def coco_classes() -> dict[int, str]:
    """COCO's 80 classes: category id -> name, in Detectron2's order."""
    metadata = MetadataCatalog.get("coco_2017_train")
    return dict(
        zip(metadata.thing_dataset_id_to_contiguous_id, metadata.thing_classes, strict=True)
    )


def check_settings(what: str, wanted: Mapping[str, bool], config: str) -> None:
    """Checks the settings of the weights' training.

    Args:
        what: name of the weights, for the message.
        wanted: "KEY value" -> whether the model has it.
        config: name of a config that has all.

    Raises:
        ConfigError: the model lacks some.
    """
    if lacking := [setting for setting, given in wanted.items() if not given]:
        raise ConfigError(f"{what} want {', '.join(lacking)}, as in configs/{config}")


def compare_anchors(level: int, theirs: Tensor, ours: list[Tensor] | None) -> str:
    """Compares a file's anchors of a level with the model's; returns the reason to drop them.

    Args:
        level: index.
        theirs: (A, 4) corners.
        ours: those of each level; None to compare with nothing.

    Raises:
        ConfigError: they differ.
    """
    reason = "anchors are built from MODEL.ANCHOR_GENERATOR"
    if ours is None:
        return reason
    if level >= len(ours) or ours[level].shape != theirs.shape:
        raise ConfigError(
            f"its level {level} has {len(theirs)} anchors a location, and the config's has not; see"
            " MODEL.ONENET.HEAD.NAME and MODEL.ANCHOR_GENERATOR"
        )
    difference = float((ours[level].cpu() - theirs).abs().max())
    if not difference <= _ANCHOR_TOLERANCE:  # also for nan
        raise ConfigError(
            f"its anchors of level {level} differ by {difference:.3g} pixels from those of"
            " MODEL.ANCHOR_GENERATOR"
        )
    return f"{reason}, which are the same up to {difference:.2g} pixels"


def check_trained_input(
    model: nn.Module, what: str, input_format: str | None, *mean_and_std: tuple[float, ...]
) -> None:
    """Checks channel order, normalisation and stride placement, which no tensor shape reveals.

    Args:
        model: has ``pixel_mean``, ``pixel_std`` and possibly ``input_format``.
        what: name of the weights, for the message.
        input_format: INPUT.FORMAT; None for the model's attribute, or RGB without one.
        *mean_and_std: see :func:`onenet.modeling.backbone.features.check_imagenet_input`.

    Raises:
        ConfigError: they differ from those of the weights.
    """
    check_imagenet_input(
        what,
        input_format or getattr(model, "input_format", "RGB"),  # Detectron2's FCOS has none
        model.pixel_mean.flatten().tolist(),
        model.pixel_std.flatten().tolist(),
        *mean_and_std,
    )
    for block in model.modules():
        if isinstance(block, BottleneckBlock) and block.conv1.stride != (1, 1):
            raise ConfigError(
                f"{what} have a bottleneck's stride in its 3x3 convolution; set"
                " MODEL.RESNETS.STRIDE_IN_1X1 to False."
            )
