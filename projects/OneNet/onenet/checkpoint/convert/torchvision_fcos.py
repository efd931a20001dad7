"""torchvision's FCOS, trained on COCO, for OneNet's FCOS head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ...modeling.heads import FCOSHead
from ...utils.errors import ConfigError
from .base import Conversion, check_settings, check_trained_input, coco_classes
from .torchvision_resnet import take_resnet

__all__ = ["convert_torchvision_fcos", "is_torchvision_fcos"]

_BODY = "backbone.body."
_CLASS_PREDICTOR = "head.classification_head.cls_logits."
_CENTERNESS = "head.regression_head.bbox_ctrness."
_ALL_IDS = 91  # rows of COCO's detectors: an id each, with gaps; 0 is the background
# Files of older versions of torchvision have no ".0"
_FPN = re.compile(r"backbone\.fpn\.(inner|layer)_blocks\.([0-2])\.(?:0\.)?(weight|bias)")
_TOP_BLOCK = re.compile(r"backbone\.fpn\.extra_blocks\.(p[67]\.(?:weight|bias))")
# Towers are flat lists of (convolution, norm, ReLU)
_TOWER = re.compile(r"head\.(classification|regression)_head\.conv\.(\d+)\.(weight|bias)")
_BOX_PREDICTOR = re.compile(r"head\.regression_head\.bbox_reg\.(weight|bias)")


def is_torchvision_fcos(names: Iterable[str]) -> bool:
    """Whether the tensors' names are those of torchvision's FCOS."""
    return {f"{_CLASS_PREDICTOR}weight", f"{_CENTERNESS}weight"} <= set(names)


def convert_torchvision_fcos(
    state: Mapping[str, Tensor], model: nn.Module, input_format: str | None = None
) -> Conversion:
    """Renames the tensors of ``fcos_resnet50_fpn``; centre-ness has no counterpart.

    Of 91 classes, COCO's 80 are kept; of another number, all but the first, the background.

    Args:
        state: its state dict.
        model: with the FCOS head.
        input_format: see :func:`onenet.checkpoint.convert.base.check_trained_input`.

    Raises:
        ConfigError: the model differs in a setting, or a name is unknown.
    """
    head, top_block = getattr(model, "head", None), getattr(model.backbone, "top_block", None)
    is_fcos = isinstance(head, FCOSHead)
    settings = {
        "MODEL.ONENET.HEAD.NAME FCOSHead": is_fcos,
        "MODEL.ONENET.HEAD.CONV_BIAS True": "head.cls_subnet.0.bias" in model.state_dict(),
        "MODEL.ONENET.HEAD.OFFSET 0.0": is_fcos and head.anchor_generator.offset == 0,
        "MODEL.BACKBONE.NAME build_resnet_fpn_p5_backbone": (
            getattr(top_block, "in_feature", None) == "p5"
        ),
    }
    check_settings("torchvision's FCOS", settings, "own_data/finetune_fcos_R50_FPN.yaml")
    check_trained_input(model, "torchvision's weights", input_format)
    conversion = Conversion("torchvision's FCOS")
    take_resnet(conversion, state, model, _BODY)
    for name, tensor in state.items():
        if name.startswith(_CLASS_PREDICTOR):
            _take_classes(conversion, name, tensor)
        elif name.startswith(_CENTERNESS):
            conversion.drop(name, tensor, "OneNet has no centre-ness")
        elif not name.startswith(_BODY):
            conversion.take(name, tensor, _new_name(name))
    conversion.state["head.scales"] = torch.ones_like(head.scales)  # theirs has none
    return conversion


def _take_classes(conversion: Conversion, name: str, tensor: Tensor) -> None:
    target = f"head.cls_score.{name.removeprefix(_CLASS_PREDICTOR)}"
    if tensor.shape[:1] == (_ALL_IDS,):
        classes = coco_classes()
        conversion.cut(name, tensor, target, list(classes), "the rows of COCO's 80 classes")
        conversion.class_names = list(classes.values())
    elif tensor.dim():
        conversion.cut(name, tensor, target, list(range(1, len(tensor))), "without background")
    else:
        raise ConfigError(f"'{name}' is a scalar")


def _new_name(name: str) -> str:
    if match := _FPN.fullmatch(name):
        kind = {"inner": "lateral", "layer": "output"}[match[1]]
        return f"backbone.fpn_{kind}{int(match[2]) + 3}.{match[3]}"
    if match := _TOP_BLOCK.fullmatch(name):
        return f"backbone.top_block.{match[1]}"
    if match := _TOWER.fullmatch(name):
        tower = {"classification": "cls_subnet", "regression": "bbox_subnet"}[match[1]]
        conv, part = divmod(int(match[2]), 3)
        return f"head.{tower}.{conv}.{'norm.' if part == 1 else ''}{match[3]}"
    if match := _BOX_PREDICTOR.fullmatch(name):
        return f"head.bbox_pred.{match[1]}"
    raise ConfigError(f"'{name}' is no name of torchvision's FCOS")
