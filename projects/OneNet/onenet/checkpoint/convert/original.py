"""Checkpoints of the paper's authors (the public repository PeizeSun/OneNet).

Their point models have Detectron2's ResNet under ``backbone`` and the deconvolution neck under
``head``; their FPN models differ from Detectron2's names only in the head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ...utils.errors import ConfigError
from .base import Conversion, Step, compare_anchors

__all__ = ["convert_original", "is_original"]

_NAMES = {
    # Backbone and neck of point models, whose stages count from 1
    r"backbone\.(stem|res[2-5])\.": "backbone.bottom_up.{}.",
    r"head\.deconv\.deconv([123])\.up_sample\.": "backbone.neck.stages.{}.up_sample.",
    r"head\.deconv\.deconv([123])\.up_bn\.": "backbone.neck.stages.{}.up_norm.",
    r"head\.deconv\.deconv([123])\.(?:dcn_)?bn\.": "backbone.neck.stages.{}.norm.",
    r"head\.deconv\.deconv([123])\.conv\.": "backbone.neck.stages.{}.conv.",
    # The authors split 27 channels by chunk(3) and concatenate the first two, so Detectron2's
    # operator gets channels 0..17 as offsets, (y, x) for each of nine taps, and 18..26 as mask,
    # which is the order of torchvision's operator
    r"head\.deconv\.deconv([123])\.dcn_offset\.": "backbone.neck.stages.{}.conv.offset.",
    r"head\.deconv\.deconv([123])\.dcn\.": "backbone.neck.stages.{}.conv.conv.",
    r"head\.deconv\.lateral_conv([123])\.": "backbone.neck.laterals.{}.",
    r"head\.deconv\.output_conv\.": "backbone.neck.output.",
    r"head\.feat1\.": "head.conv.",
    # Backbone of FPN models
    r"backbone\.(bottom_up|fpn_lateral[2-5]|fpn_output[2-5]|top_block)\.": "backbone.{}.",
    # Predictors of all heads
    r"head\.cls_score\.": "head.cls_score.",
    r"head\.(?:ltrb_pred|bbox_pred)\.": "head.bbox_pred.",
}
_TOWER = re.compile(r"head\.(cls|reg)_conv_module\.(\d+)\.(\w+)")
_SCALE = re.compile(r"head\.scales\.(\d+)\.scale")
_ANCHORS = re.compile(r"head\.anchor_generator\.cell_anchors\.(\d+)")
_MARKS = ("head.deconv.", "head.feat1.", "head.cls_conv_module.", "head.reg_conv_module.")


def is_original(names: Iterable[str]) -> bool:
    """Whether the tensors' names are those of the authors' code."""
    return any(name.startswith(_MARKS) for name in names)


def convert_original(
    state: Mapping[str, Tensor], cell_anchors: list[Tensor] | None = None
) -> Conversion:
    """Renames and reshapes the authors' tensors to this project's modules.

    Args:
        state: "model" of their checkpoint, or a part of it.
        cell_anchors: the model's cell anchors, (A, 4) corners per level, to compare with the
            file's; anchors are built from the config, not loaded.

    Returns:
        The conversion; completeness is checked when a model loads it.

    Raises:
        ConfigError: a name is unknown, a level is missing, or the anchors differ.
    """
    conversion = Conversion("a checkpoint of the authors' code")
    # Towers are flat lists of (convolution, [norm,] ReLU); ReLU has no weights
    modules_per_conv = 3 if "head.cls_conv_module.1.weight" in state else 2
    scales: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        if match := _SCALE.fullmatch(name):
            scales[int(match[1])] = (name, tensor)
        elif match := _ANCHORS.fullmatch(name):
            conversion.drop(name, tensor, compare_anchors(int(match[1]), tensor, cell_anchors))
        else:
            conversion.take(name, tensor, _new_name(name, modules_per_conv))
    if scales:
        _join_scales(conversion, scales)
    return conversion


def _new_name(name: str, modules_per_conv: int) -> str:
    if match := _TOWER.fullmatch(name):
        tower = {"cls": "cls_subnet", "reg": "bbox_subnet"}[match[1]]
        conv, part = divmod(int(match[2]), modules_per_conv)
        return f"head.{tower}.{conv}.{'norm.' if part == 1 else ''}{match[3]}"
    for pattern, new in _NAMES.items():
        if match := re.match(pattern, name):
            groups = (int(g) - 1 if g.isdigit() else g for g in match.groups())
            return new.format(*groups) + name[match.end() :]
    raise ConfigError(f"'{name}' is no name of the authors' code")


def _join_scales(conversion: Conversion, scales: dict[int, tuple[str, Tensor]]) -> None:
    """Joins the levels' one-element scales into a vector."""
    if sorted(scales) != list(range(len(scales))):
        raise ConfigError(f"it has box scales of levels {sorted(scales)} only")
    target, shape = "head.scales", (len(scales),)
    conversion.state[target] = torch.cat([scales[i][1].reshape(1) for i in range(len(scales))])
    for level, (name, tensor) in scales.items():
        action = f"joined: element {level}"
        conversion.steps.append(Step(name, tuple(tensor.shape), target, shape, action))
