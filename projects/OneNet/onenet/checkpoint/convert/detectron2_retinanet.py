"""Detectron2's RetinaNet for OneNet's RetinaNet head."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

import numpy as np
from detectron2.config import get_cfg
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from ...modeling.heads import RetinaNetHead
from .base import Conversion, check_settings, coco_classes, compare_anchors

__all__ = ["convert_detectron2_retinanet", "is_detectron2_retinanet"]

# Towers are flat lists of (convolution, ReLU)
_TOWER = re.compile(r"(head\.(?:cls|bbox)_subnet)\.(\d*[02468])\.(weight|bias)")
_ANCHORS = re.compile(r"anchor_generator\.cell_anchors\.(\d+)")  # in old files
_PIXELS = ("pixel_mean", "pixel_std")  # likewise


def is_detectron2_retinanet(names: Iterable[str]) -> bool:
    """Whether the tensors' names are those of Detectron2's RetinaNet, without norm in the head."""
    names = set(names)
    return "head.cls_subnet.2.weight" in names and "head.cls_subnet.1.weight" not in names


def convert_detectron2_retinanet(
    state: Mapping[str, Tensor], model: nn.Module, input_format: str | None = None
) -> Conversion:
    """Renumbers the towers' convolutions; all other names are the same.

    A file does not tell the input of its training. If the model's is not that of the model zoo's
    RetinaNet, a warning is logged.

    Args:
        state: its state dict. A head of 80 classes is taken for COCO's.
        model: has one of this project's heads.
        input_format: INPUT.FORMAT; None for the model's attribute.

    Raises:
        ConfigError: the model differs in a setting or in the anchors.
    """
    settings = {
        "MODEL.ONENET.HEAD.NAME RetinaNetHead": isinstance(model.head, RetinaNetHead),
        "MODEL.ONENET.HEAD.CONV_BIAS True": "head.cls_subnet.0.bias" in model.state_dict(),
    }
    config = "own_data/finetune_retinanet_R50_FPN.yaml"
    check_settings("Detectron2's RetinaNet", settings, config)
    _check_input(model, input_format)
    conversion = Conversion("Detectron2's RetinaNet")
    anchors = list(model.head.anchor_generator.cell_anchors)
    for name, tensor in state.items():
        if match := _ANCHORS.fullmatch(name):
            conversion.drop(name, tensor, compare_anchors(int(match[1]), tensor, anchors))
        elif name in _PIXELS:
            conversion.drop(name, tensor, f"MODEL.{name.upper()} is the config's")
        elif match := _TOWER.fullmatch(name):
            conversion.take(name, tensor, f"{match[1]}.{int(match[2]) // 2}.{match[3]}")
        else:
            conversion.take(name, tensor, name)
    names = list(coco_classes().values())
    bias = state.get("head.cls_score.bias")
    if bias is not None and bias.shape == (len(anchors[0]) * len(names),):
        conversion.class_names = names
    return conversion


def _check_input(model: nn.Module, input_format: str | None) -> None:
    """Warns if the input is not that of Detectron2's defaults, which the model zoo has."""
    zoo = get_cfg()
    mean, std = zoo.MODEL.PIXEL_MEAN, zoo.MODEL.PIXEL_STD
    blocks = [block for block in model.modules() if isinstance(block, BottleneckBlock)]
    equal = {
        f"INPUT.FORMAT {zoo.INPUT.FORMAT}": (input_format or model.input_format)
        == zoo.INPUT.FORMAT,
        f"MODEL.PIXEL_MEAN {mean}": np.allclose(
            model.pixel_mean.flatten().tolist(), mean, rtol=0, atol=0.5
        ),
        f"MODEL.PIXEL_STD {std}": np.allclose(
            model.pixel_std.flatten().tolist(), std, rtol=0, atol=0.5
        ),
        "MODEL.RESNETS.STRIDE_IN_1X1 True": all(b.conv2.stride == (1, 1) for b in blocks),
    }
    if others := [setting for setting, same in equal.items() if not same]:
        logging.getLogger(__name__).warning(
            f"The model zoo's RetinaNet was trained with {', '.join(others)}, and the config has"
            " other values: right only for weights that were trained with these."
        )
