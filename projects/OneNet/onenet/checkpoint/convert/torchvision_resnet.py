"""torchvision's ImageNet weights for Detectron2's ResNet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from detectron2.modeling.backbone.resnet import ResNet
from torch import Tensor, nn

from ...utils.errors import ConfigError
from .base import Conversion, check_trained_input

__all__ = ["convert_torchvision_resnet", "is_torchvision_resnet", "take_resnet"]

_NAMES = {
    r"conv1\.": "stem.conv1.",
    r"bn1\.": "stem.conv1.norm.",
    r"layer([1-4])\.(\d+)\.conv([1-3])\.": "res{}.{}.conv{}.",
    r"layer([1-4])\.(\d+)\.bn([1-3])\.": "res{}.{}.conv{}.norm.",
    r"layer([1-4])\.(\d+)\.downsample\.0\.": "res{}.{}.shortcut.",
    r"layer([1-4])\.(\d+)\.downsample\.1\.": "res{}.{}.shortcut.norm.",
}


def is_torchvision_resnet(names: Iterable[str]) -> bool:
    """Whether the tensors' names are those of a torchvision ResNet."""
    return {"conv1.weight", "layer1.0.conv1.weight"} <= set(names)


def convert_torchvision_resnet(
    state: Mapping[str, Tensor], model: nn.Module, input_format: str | None = None
) -> Conversion:
    """Renames torchvision's tensors to those of the model's ResNet.

    Args:
        state: state dict of ``torchvision.models.resnet18`` and so on; the classifier may be
            missing.
        model: has one Detectron2 ResNet.
        input_format: see :func:`onenet.checkpoint.convert.base.check_trained_input`.

    Raises:
        ConfigError: a name is unknown; or the model has no ResNet, another input normalisation, or
            strides in other convolutions.
    """
    check_trained_input(model, "torchvision's weights", input_format)
    conversion = Conversion("torchvision's ResNet")
    conversion.fills = take_resnet(conversion, state, model)
    return conversion


def take_resnet(
    conversion: Conversion, state: Mapping[str, Tensor], model: nn.Module, under: str = ""
) -> str:
    """Adds the tensors of a torchvision ResNet, renamed to those of the model's.

    Args:
        conversion: to add to.
        state: of the file.
        model: has one Detectron2 ResNet.
        under: prefix of the ResNet's names in the file; other tensors are left out.

    Returns:
        The prefix of the ResNet's names in the model.

    Raises:
        ConfigError: a name is unknown, or the model has no ResNet.
    """
    prefix, resnet = _find_resnet(model)
    known = resnet.state_dict()
    for name, tensor in state.items():
        if not name.startswith(under):
            continue
        if name in ("fc.weight", "fc.bias"):
            conversion.drop(name, tensor, "ImageNet's classifier")
            continue
        target = _new_name(name.removeprefix(under))
        stage = target.split(".")[0]
        if stage != "stem" and stage not in resnet.stage_names:
            conversion.drop(name, tensor, f"the config's ResNet ends before {stage}")
        elif target.endswith(".num_batches_tracked") and target not in known:
            conversion.drop(name, tensor, "frozen batch norm counts no batches")
        else:
            conversion.take(name, tensor, prefix + target)
    return prefix


def _new_name(name: str) -> str:
    for pattern, new in _NAMES.items():
        if match := re.match(pattern, name):
            layer, *rest = match.groups() or ("0",)
            return new.format(int(layer) + 1, *rest) + name[match.end() :]
    raise ConfigError(f"'{name}' is no name of torchvision's ResNet")


def _find_resnet(model: nn.Module) -> tuple[str, ResNet]:
    """The prefix of the ResNet's tensor names, and the ResNet."""
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, ResNet)]
    if len(found) != 1:
        raise ConfigError(
            f"they are torchvision's, for a ResNet, and the model has {len(found)}; see"
            " MODEL.BACKBONE.NAME"
        )
    name, resnet = found[0]
    return f"{name}." if name else "", resnet
