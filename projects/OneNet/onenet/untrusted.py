"""Files of others: read within bounds and without running code, or refused in a sentence."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

from .errors import ConfigError, DataError

__all__ = ["read_json", "read_pickled_checkpoint", "read_yaml"]

MAX_JSON_BYTES = 2**31  # COCO's own annotations have 0.5 GB
MAX_YAML_BYTES = 2**20
MAX_YAML_NODES = 10**5  # after each alias is replaced by what it stands for


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Reads a json file.

    Args:
        path: of the file.
        max_bytes: size of the largest file that is read; in memory it may take 20 times that.

    Raises:
        DataError: it is missing, too large, nested too deeply, or no json.
    """
    try:
        with open(path, "rb") as file:
            content = _read_bounded(file.read, path, max_bytes)
        return json.loads(content.decode("utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be read: get the file again") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid json: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a json file: it is not UTF-8 text ({error})") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise DataError(f"{path} has a number that cannot be read ({error})") from error


def _read_bounded(
    read: Callable[[int], bytes], path: str | os.PathLike[str], max_bytes: int
) -> bytes:
    content = read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DataError(f"{path} is larger than {max_bytes:,} bytes, the most that is read")
    return content


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Reads a yaml file with yaml's safe loader, which makes no Python objects.

    Raises:
        ConfigError: it is missing, too large, nested too deeply, or no plain yaml; or its aliases
            stand for too much (a few lines can stand for gigabytes).
    """
    try:
        with open(path, "rb") as file:
            text = _read_bounded(file.read, path, MAX_YAML_BYTES)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _expanded_size(root, {}) > MAX_YAML_NODES:
            raise ConfigError(
                f"{path} has aliases that stand for more than {MAX_YAML_NODES:,} values, or for"
                " themselves: write out what they stand for"
            )
        return yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply to be read.") from error
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{error}.") from error
    except Exception as error:  # yaml lets values raise anything, by the tag before them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{path} is no plain yaml, which alone is accepted: {reason}; mend that line."
        ) from error


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many nodes it has, where each alias counts as what it stands for."""
    if id(node) not in sizes:
        sizes[id(node)] = MAX_YAML_NODES + 1  # what contains itself has no end
        children = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in children)
    return sizes[id(node)]


def read_pickled_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint of Detectron2's or Caffe2's model zoo, which are pickles of NumPy arrays.

    What else a pickle may ask for, is refused before it runs.

    Returns:
        What Detectron2's ``DetectionCheckpointer`` makes of such a file.

    Raises:
        ConfigError: the file is broken, or asks for anything but arrays.
    """
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        if "model" in content and "__author__" in content:
            checkpoint = dict(content)
        else:  # of Caffe2: "blobs" in detectors, their content alone in classifiers
            blobs = content.get("blobs", content)
            checkpoint = {
                "model": {k: v for k, v in blobs.items() if not k.endswith("_momentum")},
                "__author__": "Caffe2",
                "matching_heuristics": True,
            }
        wrong = [name for name, value in checkpoint["model"].items() if not _is_array(value)]
    except Exception as error:  # a broken file makes pickle raise anything
        raise ConfigError(
            f"The file {path} is no pickle of arrays alone, which can be read without running code"
            f" in it ({' '.join(str(error).split()) or type(error).__name__})."
        ) from error
    if wrong or not checkpoint["model"]:
        raise ConfigError(
            f"The file {path} holds no weights: {wrong[0] if wrong else 'model'!r} is no array."
        )
    return checkpoint


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the few names that pickles of arrays have, by their old and new modules."""

    def find_class(self, module: str, name: str) -> Any:
        """See :class:`pickle.Unpickler`."""
        if module.startswith("numpy._core."):  # since NumPy 2
            module = module.replace("numpy._core.", "numpy.core.", 1)
        try:
            return _HARMLESS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _encode_latin1(text: str, encoding: str) -> bytes:
    """The one use of ``_codecs.encode`` that Python 3 makes of it for bytes in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


def _names_of_arrays() -> dict[tuple[str, str], Any]:
    """What pickles of arrays and NumPy's scalars ask for, in all protocols."""
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _encode_latin1,
        ("__builtin__", "bytes"): lambda: b"",  # as old protocols have empty ones
    }
    array = np.zeros(1)
    for value in (array, array[0]):
        for protocol in (2, 5):
            function = value.__reduce_ex__(protocol)[0]
            module = function.__module__.replace("numpy._core.", "numpy.core.", 1)
            names[module, function.__name__] = function
    return names


_HARMLESS = _names_of_arrays()
