"""Checkpoints read without running code, converted where they are another project's."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..utils.errors import ConfigError, TrainingError
from ..utils.files import cannot_write, whole_file, write_whole
from .convert import Conversion, convert_foreign
from .unpickler import read_pickled_checkpoint

__all__ = ["OneNetCheckpointer", "load_weights", "read_checkpoint"]

_CLASS_PREDICTOR = "head.cls_score."
_RESCORING = "rescoring."  # the authors' models have none
_COUNTER = ".num_batches_tracked"  # not in torchvision's published files, nor used with a momentum
_STATISTICS = (".running_mean", ".running_var", _COUNTER)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint without running what it may contain.

    Args:
        path: of a local file that torch has saved: a checkpoint with "model" in it, or the names
            and tensors alone.

    Returns:
        The checkpoint; "model" has names and tensors, without the "module." that DataParallel puts
        before all names.

    Raises:
        ConfigError: the file is broken, would run code, or holds no weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A broken file makes torch raise anything: UnpicklingError, RuntimeError, EOFError, ...
        raise ConfigError(
            f"The file {path} is no checkpoint that torch can read without running code in it"
            f" ({type(error).__name__})."
        ) from error
    if isinstance(content, Mapping) and "model" not in content:
        content = {"model": content}
    state = content.get("model") if isinstance(content, Mapping) else None
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
        )
    ):
        raise ConfigError(
            f"The file {path} holds no weights: wanted are names and tensors, as they are or as"
            " 'model' of a checkpoint."
        )
    if all(name.startswith("module.") for name in state):
        consume_prefix_in_state_dict_if_present(state, "module.")
    return dict(content)


class _MisfitError(ConfigError):
    """Weights do not fit the model; the message is a part of a sentence."""


class OneNetCheckpointer(DetectionCheckpointer):
    """Detectron2's, which runs no code that a .pth file contains, and reads others' weights too.

    What it saves is whole or not there, and ``last_checkpoint`` never names anything else.

    A checkpoint of the authors' code is converted as it is loaded, and has to fill the whole model;
    torchvision's ResNets have to fill the model's ResNet. Of any file something has to fit.

    Attributes:
        conversion: what was done with the last file, where it was converted; else None.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        new_classes: bool = False,
        input_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            model, save_dir, **kwargs: see Detectron2's.
            new_classes: whether the class predictor of an authors' checkpoint may be of other
                classes, and is trained anew then; as are parts that the authors' models lack.
            input_format: INPUT.FORMAT, which not every model knows; None for what the model says.
        """
        super().__init__(model, save_dir, **kwargs)
        self._new_classes = new_classes
        self._input_format = input_format
        self.conversion: Conversion | None = None

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See Detectron2's.

        Raises:
            ConfigError: a .pth file is no checkpoint; or it is the authors' or torchvision's, and
                not of this model; or nothing of the file is of this model.
        """
        try:
            return super().load(path, *args, **kwargs)
        except _MisfitError as error:
            raise ConfigError(
                f"The weights {path} are not of the model that the config describes: {error}."
            ) from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 asserts it, and forgets it on errors

    def save(self, name: str, **kwargs: Any) -> None:
        """See Detectron2's; only on a local disk.

        Raises:
            TrainingError: the file cannot be written, and what was saved before stays as it is; or
                a parameter is NaN or infinite.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        for key, weights in self.model.named_parameters():
            if not weights.isfinite().all():
                raise TrainingError(
                    f"{path} was not saved, as the weights {key} are not finite; go on from an"
                    " earlier checkpoint with a lower SOLVER.BASE_LR or with SOLVER.CLIP_GRADIENTS."
                )
        content = {"model": self.model.state_dict()}
        content.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        content.update(kwargs)
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            with whole_file(path) as file:
                torch.save(content, file)
            self.tag_last_checkpoint(os.path.basename(path))
        except OSError as error:
            raise cannot_write(error.filename, error) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """See Detectron2's."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_whole(path, last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, Any]:
        # Detectron2 hands .pkl files to pickle, which would run the code in them
        if filename.endswith(".pkl"):
            return read_pickled_checkpoint(filename)
        try:
            return super()._load_file(filename)
        except (pickle.UnpicklingError, AssertionError) as error:  # of a .pyth file, of pycls
            raise ConfigError(f"The file {filename} is no checkpoint of pycls.") from error

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self.conversion = None
        if checkpoint.get("matching_heuristics"):  # Detectron2 renames these itself
            names = list(checkpoint["model"])
            keys = super()._load_model(checkpoint)
            # Detectron2 fills statistics of frozen batch norm that a file lacks
            loaded = set(self.model.state_dict()) - set(keys.missing_keys)
            _check_anything_fits(names, any(not name.endswith(_STATISTICS) for name in loaded))
            return keys
        try:
            self.conversion = convert_foreign(checkpoint["model"], self.model, self._input_format)
        except ConfigError as error:
            raise _MisfitError(str(error).rstrip(".")) from error
        if self.conversion is None:
            return self._load_exactly_named(checkpoint)
        checkpoint["model"] = dict(self.conversion.state)
        keys = self._load_exactly_named(checkpoint)
        anew = (_CLASS_PREDICTOR, (_RESCORING,)) if self._new_classes else ((), ())
        _check_fit(keys, self.conversion.fills, *anew)
        rest = f"{len(keys.missing_keys)} of the model's tensors stay as initialised"
        # torchvision's always leave some
        unusual = keys.missing_keys and not self.conversion.fills
        logging.getLogger(__name__).log(
            logging.WARNING if unusual else logging.INFO,
            f"Converted from {self.conversion.origin}, {self.conversion.summary()}; {rest}.",
        )
        return keys

    def _load_exactly_named(self, checkpoint: dict[str, Any]) -> Any:
        """Detectron2's ``_load_model``, with the truth about what is missing.

        Its frozen batch norm takes 0 and 1 for statistics that a file without versions lacks.
        """
        state, known = checkpoint["model"], self.model.state_dict()
        fits = any(name in known and known[name].shape == state[name].shape for name in state)
        missing = [name for name in known if name not in state and not name.endswith(_COUNTER)]
        _check_anything_fits(list(state), fits)
        keys = super()._load_model(checkpoint)
        return keys._replace(missing_keys=list(dict.fromkeys([*keys.missing_keys, *missing])))


def _check_anything_fits(names: list[str], fits: bool) -> None:
    if not fits:
        first = f" (the first: {names[0]})" if names else ""
        raise _MisfitError(
            f"none of its {len(names)} tensors{first} has the name and shape of one of the model's"
        )


def _check_fit(
    keys: Any,
    fills: str = "",
    new_shape: str | tuple[str, ...] = (),
    may_lack: tuple[str, ...] = (),
) -> None:
    """Refuses what Detectron2 only warns of.

    Args:
        keys: what Detectron2's ``_load_model`` returned.
        fills: prefix of the model's tensors that must have been in the file.
        new_shape: prefix of those that may have another shape, and stay as initialised.
        may_lack: prefixes of those that need not be there, and stay as initialised.

    Raises:
        _MisfitError: a tensor is missing, left over, or has another shape.
    """
    shapes = [name for name, *_ in keys.incorrect_shapes]  # these count as missing, too
    wrong = {
        "has in another shape": [name for name in shapes if not name.startswith(new_shape)],
        "lacks": [
            name
            for name in keys.missing_keys
            if name not in shapes and name.startswith(fills) and not name.startswith(may_lack)
        ],
        "has, and the model does not,": keys.unexpected_keys,
    }
    for what, names in wrong.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            rescores = names[0].startswith(_RESCORING)
            see = ", which MODEL.ONENET.RESCORING.CANDIDATES decides" if rescores else ""
            raise _MisfitError(f"it {what} {names[0]}{more}{see}")


class _ExactCheckpointer(OneNetCheckpointer):
    """Reads files of any name as torch's, and refuses what Detectron2 only warns of."""

    def _load_file(self, filename: str) -> dict[str, Any]:
        # Detectron2 hands .pkl files to pickle
        return {"model": read_checkpoint(filename)["model"]}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        keys = super()._load_model(checkpoint)
        _check_fit(keys)
        return keys


def load_weights(model: nn.Module, path: str) -> None:
    """Loads a checkpoint of exactly this model: of Detectron2's trainer, or of the authors' code.

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
    _ExactCheckpointer(model).load(path, checkpointables=[])
