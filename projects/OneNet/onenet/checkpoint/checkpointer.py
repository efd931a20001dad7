"""Reading and writing of checkpoints; conversion of those of other projects."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import Detectron2Handler
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..utils.errors import ConfigError, TrainingError
from ..utils.files import cannot_write, whole_file, write_whole
from .class_rows import CLASS_PREDICTOR, keep_class_rows
from .convert import Conversion, convert_foreign
from .unpickler import read_pickled_checkpoint

__all__ = ["OneNetCheckpointer", "load_weights", "read_checkpoint", "stored_config"]

_RESCORING = "rescoring."  # absent in the authors' models
_COUNTER = ".num_batches_tracked"  # absent in torchvision's files, unused with a momentum
_STATISTICS = (".running_mean", ".running_var", _COUNTER)
_CLASS_NAMES, _CONFIG = "class_names", "config"  # of a checkpoint


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint without running code in it.

    Args:
        path: of a local file saved by torch: a checkpoint with "model", or a state dict.

    Returns:
        The checkpoint; "model" is a state dict without DataParallel's prefix "module.".

    Raises:
        ConfigError: the file is broken, contains code, or has no weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # For broken files torch raises UnpicklingError, RuntimeError, EOFError, ...
        raise ConfigError(
            f"The file {path} is no checkpoint that torch can read without running code in it"
            f" ({type(error).__name__})."
        ) from error
    if isinstance(content, Mapping) and "model" not in content:
        content = {"model": content}
    state = content.get("model") if isinstance(content, Mapping) else None
    items = list(state.items()) if isinstance(state, Mapping) else []
    if not items or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in items):
        raise ConfigError(
            f"The file {path} holds no weights: wanted are names and tensors, as they are or as"
            " 'model' of a checkpoint."
        )
    if all(name.startswith("module.") for name in state):
        consume_prefix_in_state_dict_if_present(state, "module.")
    return dict(content)


def stored_config(path: str) -> str | None:
    """The training's config, as yaml text, from a checkpoint; None if it has none.

    Args:
        path: see :func:`read_checkpoint`.

    Raises:
        ConfigError: see :func:`read_checkpoint`.
    """
    config = read_checkpoint(path).get(_CONFIG)
    return config if isinstance(config, str) else None


class _MisfitError(ConfigError):
    """Weights do not fit the model. The message completes the caller's sentence."""


class OneNetCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with safe reading, atomic writing, and weights of other projects.

    Weights of other projects are converted when they are loaded. A detector must fill the whole
    model, a torchvision ResNet the model's ResNet. Of any other file at least one tensor must fit.
    Checkpoints are written whole or not at all, and ``last_checkpoint`` names a whole one.

    Attributes:
        exact: whether a file must fill the whole model and have nothing else.
        conversion: of the last file if it was converted, else None.
        loaded_class_names: K names that the last file has, in the order of the model's classes;
            None if it has none.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        exact: bool = False,
        class_names: Sequence[str] | None = None,
        config: str | None = None,
        new_classes: bool = False,
        input_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            model, save_dir, **kwargs: see Detectron2's.
            exact: see the attribute.
            class_names: K names, stored in checkpoints.
            config: yaml text of the training's config, stored in checkpoints.
            new_classes: whether a checkpoint may have other classes than the model: weights of
                classes of the same names are kept (:func:`onenet.checkpoint.class_rows.
                keep_class_rows`). Converted detectors may also lack rescoring. What a file lacks
                stays as initialised. Not with ``exact``.
            input_format: INPUT.FORMAT; None for the model's attribute.
        """
        super().__init__(model, save_dir, **kwargs)
        self.exact = exact
        self._class_names, self._config = class_names, config
        self._new_classes = new_classes
        self._input_format = input_format
        self.conversion: Conversion | None = None
        self.loaded_class_names: list[str] | None = None

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See Detectron2's.

        Raises:
            ConfigError: the file cannot be downloaded, is not a checkpoint, or does not fit the
                model.
        """
        self.loaded_class_names = None
        try:
            return super().load(path, *args, **kwargs)
        except _MisfitError as error:
            cure = (
                " Give the config and the classes of their training; to train on from them with"
                " others, start a new run with them as MODEL.WEIGHTS."
            )
            raise ConfigError(
                f"The weights {path} are not of the model that the config describes:"
                f" {error}.{cure if self.exact else ''}"
            ) from error
        except OSError as error:
            if not urlparse(path).scheme:
                raise
            zoo = Detectron2Handler
            url = path.replace(zoo.PREFIX, zoo.S3_DETECTRON2_PREFIX, 1)
            raise ConfigError(
                f"MODEL.WEIGHTS: {path} cannot be downloaded ({getattr(error, 'reason', error)});"
                f" download {url} on a machine that can, and give its path as MODEL.WEIGHTS."
            ) from error
        finally:
            self._parsed_url_during_load = None  # not reset by Detectron2 on errors

    def save(self, name: str, **kwargs: Any) -> None:
        """See Detectron2's; to a local disk only.

        Raises:
            TrainingError: the file cannot be written, or a parameter is NaN or infinite; earlier
                checkpoints are unchanged.
        """
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        if path := self.save_model(name, **state, **kwargs):
            try:
                self.tag_last_checkpoint(os.path.basename(path))
            except OSError as error:
                raise cannot_write(error.filename, error) from error

    def save_model(self, name: str, **kwargs: Any) -> str:
        """Saves the weights alone; a run does not resume from this file.

        Args:
            name: of the file in ``save_dir``, without ".pth".
            **kwargs: further entries.

        Returns:
            The path; "" if this process does not save.

        Raises:
            TrainingError: see :meth:`save`.
        """
        if not self.save_dir or not self.save_to_disk:
            return ""
        path = os.path.join(self.save_dir, f"{name}.pth")
        for key, weights in self.model.named_parameters():
            if not weights.isfinite().all():
                raise TrainingError(
                    f"{path} was not saved, as the weights {key} are not finite; go on from an"
                    " earlier checkpoint with a lower SOLVER.BASE_LR or with SOLVER.CLIP_GRADIENTS."
                )
        content = {"model": self.model.state_dict(), **kwargs}
        if self._class_names is not None:
            content[_CLASS_NAMES] = list(self._class_names)
        if self._config is not None:
            content[_CONFIG] = self._config
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            with whole_file(path) as file:
                torch.save(content, file)
        except OSError as error:
            raise cannot_write(error.filename, error) from error
        return path

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """See Detectron2's."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_whole(path, last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, Any]:
        # Detectron2 would unpickle .pkl files, running code in them
        if filename.endswith(".pkl"):
            return read_pickled_checkpoint(filename)
        try:
            return super()._load_file(filename)
        except (pickle.UnpicklingError, AssertionError) as error:  # a .pyth file of pycls
            raise ConfigError(f"The file {filename} is no checkpoint of pycls.") from error

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        keys = self._load_converted(checkpoint)
        if self.exact:
            _check_fit(keys)
        return keys

    def _load_converted(self, checkpoint: dict[str, Any]) -> Any:
        self.conversion = None
        if checkpoint.get("matching_heuristics"):  # renamed by Detectron2
            names = list(checkpoint["model"])
            keys = super()._load_model(checkpoint)
            # Detectron2 fills missing statistics of frozen batch norm
            loaded = set(self.model.state_dict()) - set(keys.missing_keys)
            _check_anything_fits(names, any(not name.endswith(_STATISTICS) for name in loaded))
            return keys
        self._convert_ndarray_to_tensor(checkpoint["model"])
        try:
            self.conversion = convert_foreign(checkpoint["model"], self.model, self._input_format)
        except ConfigError as error:
            raise _MisfitError(str(error).rstrip(".")) from error
        if self.conversion is None:
            return self._load_exactly_named(checkpoint)
        checkpoint["model"] = dict(self.conversion.state)
        checkpoint.setdefault(_CLASS_NAMES, self.conversion.class_names)
        keys = self._load_exactly_named(checkpoint)
        anew = (CLASS_PREDICTOR, _RESCORING) if self._new_classes else ()
        _check_fit(keys, self.conversion.fills, *anew)
        rest = f"{len(keys.missing_keys)} of the model's tensors stay as initialised"
        # torchvision's files always leave some tensors
        unusual = keys.missing_keys and not self.conversion.fills
        logging.getLogger(__name__).log(
            logging.WARNING if unusual else logging.INFO,
            f"Converted from {self.conversion.origin}, {self.conversion.summary()}; {rest}.",
        )
        return keys

    def _load_exactly_named(self, checkpoint: dict[str, Any]) -> Any:
        """Detectron2's ``_load_model``, which omits missing statistics of frozen batch norm."""
        state, known = checkpoint["model"], self.model.state_dict()
        fits = any(name in known and known[name].shape == state[name].shape for name in state)
        missing = [name for name in known if name not in state and not name.endswith(_COUNTER)]
        _check_anything_fits(list(state), fits)
        names = checkpoint.get(_CLASS_NAMES)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            self.loaded_class_names = names
            if self._new_classes and not self.exact and self._class_names:
                keep_class_rows(state, known, names, self._class_names)
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
    fills: str = "",  # must be in the file
    new_shape: str | tuple[str, ...] = (),  # may have another shape, and stay as initialised
    may_lack: str | tuple[str, ...] = (),  # may be missing, and stay as initialised
) -> None:
    """Raises for mismatches that Detectron2 only warns about; arguments are prefixes of names."""
    shapes = [name for name, *_ in keys.incorrect_shapes]  # also counted as missing
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


def load_weights(model: nn.Module, path: str) -> list[str] | None:
    """Loads a checkpoint that must fill the whole model, of this project or of the authors' code.

    Args:
        model: to fill.
        path: of a local file.

    Returns:
        Names of the K classes, if the file has them.

    Raises:
        ConfigError: the file is missing, not a checkpoint, or does not fit the model exactly.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"Weights: there is no file '{path}'.")
    checkpointer = OneNetCheckpointer(model, exact=True)
    checkpointer.load(path, checkpointables=[])
    return checkpointer.loaded_class_names
