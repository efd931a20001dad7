"""Paths such as "torchvision://resnet18": files that torchvision publishes."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.utils.file_io import PathHandler, PathManager
from torchvision.models import get_model_weights

from ...utils.errors import ConfigError

__all__ = ["torchvision_url"]

PREFIX = "torchvision://"
_WEIGHTS = {
    # As in Detectron2's and the paper's models
    "resnet18": "IMAGENET1K_V1",
    "resnet34": "IMAGENET1K_V1",
    "resnet50": "IMAGENET1K_V1",
    "resnet101": "IMAGENET1K_V1",
    "fcos_resnet50_fpn": "COCO_V1",
}


def torchvision_url(path: str) -> str:
    """URL of the weights of "torchvision://resnet18" and so on.

    Raises:
        ConfigError: the name is unknown.
    """
    name = path.removeprefix(PREFIX)
    if name not in _WEIGHTS:
        raise ConfigError(
            f"MODEL.WEIGHTS is '{path}'; after torchvision:// goes one of {', '.join(_WEIGHTS)}."
        )
    return get_model_weights(name)[_WEIGHTS[name]].url


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
