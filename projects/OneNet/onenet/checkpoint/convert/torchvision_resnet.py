"""torchvision's ImageNet weights for Detectron2's ResNet."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.modeling.backbone.resnet import ResNet
from detectron2.utils.file_io import PathHandler, PathManager
from torch import Tensor, nn
from torchvision.models import get_model_weights

from ...utils.errors import ConfigError
from .base import Conversion, check_trained_input

__all__ = ["convert_torchvision_resnet", "is_torchvision_resnet", "torchvision_url"]

PREFIX = "torchvision://"
_DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101")
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
    prefix, resnet = _find_resnet(model)
    check_trained_input(model, "torchvision's weights", input_format)
    conversion = Conversion("torchvision's ResNet", fills=prefix)
    known = resnet.state_dict()
    for name, tensor in state.items():
        if name in ("fc.weight", "fc.bias"):
            conversion.drop(name, tensor, "ImageNet's classifier")
            continue
        target = _new_name(name)
        stage = target.split(".")[0]
        if stage != "stem" and stage not in resnet.stage_names:
            conversion.drop(name, tensor, f"the config's ResNet ends before {stage}")
        elif target.endswith(".num_batches_tracked") and target not in known:
            conversion.drop(name, tensor, "frozen batch norm counts no batches")
        else:
            conversion.take(name, tensor, prefix + target)
    return conversion


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


def torchvision_url(path: str) -> str:
    """URL of the weights of "torchvision://resnet18" and so on.

    These are IMAGENET1K_V1, as in Detectron2's and the paper's models.

    Raises:
        ConfigError: the name is unknown.
    """
    name = path.removeprefix(PREFIX)
    if name not in _DEPTHS:
        raise ConfigError(
            f"MODEL.WEIGHTS is '{path}'; after torchvision:// goes one of {', '.join(_DEPTHS)}."
        )
    return get_model_weights(name)["IMAGENET1K_V1"].url


class _TorchvisionHandler(PathHandler):
    """Lets Detectron2 open paths such as "torchvision://resnet18"."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Downloads the file into torch.hub's folder, unless it is there."""
        url = torchvision_url(path)
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        file = os.path.join(folder, os.path.basename(urlparse(url).path))
        if os.path.isfile(file):  # it is checked when read
            return file
        try:
            torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:  # no connection; another hash
            raise ConfigError(
                f"MODEL.WEIGHTS: {path} cannot be downloaded ({getattr(error, 'reason', error)});"
                f" download {url} on a machine that can, and put the file into {folder}, or give"
                " its path as MODEL.WEIGHTS."
            ) from error
        return file


PathManager.register_handler(_TorchvisionHandler())
