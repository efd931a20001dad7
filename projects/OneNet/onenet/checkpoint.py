"""Weights that fit exactly, from files that run no code."""

from __future__ import annotations

import os
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from .errors import ConfigError

__all__ = ["load_weights"]

_TRAINING_ONLY = "head.one_to_many."  # see onenet.meta_arch.OneNet.remove_training_parts


class _ExactCheckpointer(DetectionCheckpointer):
    """Runs no code that a file contains, and refuses what Detectron2 only warns of."""

    def _load_file(self, filename: str) -> dict[str, Any]:
        # Detectron2 hands .pkl files to pickle
        content = torch.load(filename, map_location="cpu", weights_only=True)
        return content if "model" in content else {"model": content}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        keys = super()._load_model(checkpoint)
        unexpected = keys.unexpected_keys
        if not any(n.startswith(_TRAINING_ONLY) for n, _ in self.model.named_parameters()):
            unexpected = [name for name in unexpected if not name.startswith(_TRAINING_ONLY)]
        wrong = {
            # First, since these count as missing too
            "has in another shape": [name for name, *_ in keys.incorrect_shapes],
            "lacks": keys.missing_keys,
            "has, and the model does not,": unexpected,
        }
        for what, names in wrong.items():
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ConfigError(f"it {what} {names[0]}{more}")
        return keys


def load_weights(model: nn.Module, path: str) -> None:
    """Loads a checkpoint of exactly this model, as Detectron2's trainer writes it.

    Parts that only training uses may be missing in the model.

    Detectron2's checkpointer leaves weights that do not fit as they were, and unpickles what ends
    in ".pkl". Here nothing of the model stays random, and no file runs code.

    Args:
        model: takes the weights.
        path: of a local file.

    Raises:
        ConfigError: there is no such file, it is no checkpoint, or not of this model.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"Weights: there is no file '{path}'.")
    try:
        _ExactCheckpointer(model).load(path, checkpointables=[])
    except ConfigError as error:
        raise ConfigError(
            f"The weights {path} are not of the model that the config describes: {error}."
        ) from error
    except Exception as error:
        # A broken file makes torch raise anything: UnpicklingError, RuntimeError, EOFError, ...
        raise ConfigError(
            f"The file {path} is no checkpoint that torch can read without running code in it"
            f" ({type(error).__name__})."
        ) from error
