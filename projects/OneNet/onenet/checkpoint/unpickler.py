"""Safe reading of pickles of NumPy arrays."""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from ..utils.errors import ConfigError

__all__ = ["read_pickled_checkpoint"]


def read_pickled_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint of Detectron2's or Caffe2's model zoo, a pickle of NumPy arrays.

    Anything else in the pickle is refused before it runs.

    Returns:
        As Detectron2's ``DetectionCheckpointer`` returns for such a file.

    Raises:
        ConfigError: the file is broken, or has anything but arrays.
    """
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
            content = _Finished(os.fstat(file.fileno()).st_size).finish(content)
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"it is a {type(content).__name__}, no dict")
        if "model" in content and "__author__" in content:
            checkpoint = dict(content)
        else:  # Caffe2: detectors have "blobs", classifiers only their content
            blobs = content.get("blobs", content)
            checkpoint = {
                "model": {k: v for k, v in blobs.items() if not k.endswith("_momentum")},
                "__author__": "Caffe2",
                "matching_heuristics": True,
            }
        state = checkpoint["model"]
        wrong = [name for name, value in state.items() if not isinstance(value, np.ndarray)]
    except Exception as error:  # broken files raise many types of errors
        raise ConfigError(
            f"The file {path} is no pickle of arrays alone, which can be read without running code"
            f" in it ({' '.join(str(error).split()) or type(error).__name__})."
        ) from error
    if wrong or not checkpoint["model"]:
        raise ConfigError(
            f"The file {path} holds no weights: {wrong[0] if wrong else 'model'!r} is no array."
        )
    return checkpoint


def _shallow(load_tuple: Callable[[Any], None]) -> Callable[[Any], None]:
    """Refuses deeply nested tuples, whose hashes, as keys, take too long; arrays need none."""

    def load(unpickler: Any) -> None:
        load_tuple(unpickler)
        for child in unpickler.stack[-1]:
            if isinstance(child, tuple) and any(isinstance(x, tuple) for x in child):
                raise pickle.UnpicklingError("it has tuples in tuples in tuples")

    return load


# Python's unpickler: the C one allocates gigabytes for a large memo index
class _ArrayUnpickler(pickle._Unpickler):
    """Allows the few names in pickles of arrays, and replaces NumPy's functions by safe ones.

    NumPy's own accept forged dtypes, whose fields and flags turn numbers into pointers.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """See :class:`pickle.Unpickler`."""
        if module.startswith("numpy._core."):  # since NumPy 2
            module = module.replace("numpy._core.", "numpy.core.", 1)
        try:
            return _HARMLESS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def load_bytes(self) -> None:
        """Reads bytes; a bytearray would be allocated before the file proves shorter."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytes

    for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[_opcode[0]] = _shallow(dispatch[_opcode[0]])


def _told(value: Any) -> str:
    """A value for a message, bounded: the text of a few lists may be gigabytes."""
    return repr(value[:20]) if isinstance(value, str) else type(value).__name__


class _Maker:
    """A function that a pickle may call but not modify."""

    __slots__ = ("_make",)
    __hash__ = None

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Dtype:
    """Replaces a numeric dtype, without fields and flags."""

    __slots__ = ("dtype",)
    __hash__ = None

    def __init__(self, code: object, align: object = 0, copy: object = 0) -> None:
        if not (isinstance(code, str) and re.fullmatch("[biuf][1248]", code)):
            raise pickle.UnpicklingError(f"it asks for the dtype {_told(code)}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, byte_order, *rest = state
        if tuple(rest) != (None, None, None, -1, -1, 0) or byte_order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it asks for another {self.dtype} than NumPy's")
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """Replaces an array, which is created after the file is read."""

    __slots__ = ("axes", "dtype", "order", "raw", "shape")
    __hash__ = None

    def __init__(self) -> None:
        self.set(b"", _Dtype("b1"), (0,), "C")

    def set(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> None:
        """Sets the array's content and layout; raises if they are inconsistent."""
        right = isinstance(raw, (bytes, str)) and isinstance(dtype, _Dtype)  # str in Python 2
        right = right and isinstance(shape, tuple) and len(shape) <= 32
        right = right and all(type(size) is int and 0 <= size < 2**48 for size in shape)
        if order == "K":
            right = right and isinstance(axes, tuple) and all(type(axis) is int for axis in axes)
            right = right and sorted(axes) == list(range(len(shape)))
        else:
            right = right and order in ("C", "F") and axes is None
        if not right or math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError("it has an array whose size and content differ")
        self.raw, self.dtype, self.shape = raw, dtype.dtype, shape
        self.order, self.axes = order, axes

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, is_fortran, raw = state
        if version != 1:
            raise pickle.UnpicklingError(f"it has an array of version {_told(version)}")
        self.set(raw, dtype, shape, "F" if is_fortran else "C")

    def make(self) -> np.ndarray:
        """Creates the array in this machine's byte order."""
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        values = np.frombuffer(raw, self.dtype).astype(self.dtype.newbyteorder("="))
        if self.order == "K":
            return values.reshape(self.shape).transpose(self.axes)
        return values.reshape(self.shape, order=self.order)


class _Finished:
    """Replaces the stand-ins by arrays, of at most the file's size in all."""

    def __init__(self, size: int) -> None:
        self.room = size
        self.done: dict[int, Any] = {}

    def finish(self, value: Any) -> Any:
        """Returns the value with dicts, lists and tuples copied."""
        if not isinstance(value, (_Array, _Dtype, _Maker, dict, list, tuple)):
            return value
        if id(value) not in self.done:
            self.done[id(value)] = self  # marks a value in progress
            self.done[id(value)] = self._finish(value)
        if self.done[id(value)] is self:
            raise pickle.UnpicklingError("it contains itself")
        return self.done[id(value)]

    def _finish(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.finish(child) for key, child in dict.items(value)}
        if isinstance(value, (list, tuple)):
            return type(value)([self.finish(child) for child in value])
        if not isinstance(value, _Array):
            raise pickle.UnpicklingError("it holds a dtype or function, which is no array")
        self.room -= len(value.raw)
        if self.room < 0:
            raise pickle.UnpicklingError("it has arrays that share their content")
        return value.make()


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    """Replaces NumPy's function: an empty array, whose state follows."""
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError("it asks for an array of another class")
    return _Array()


def _frombuffer(*args: Any) -> _Array:
    """Replaces NumPy's function: an array in protocol 5."""
    array = _Array()
    array.set(*args)
    return array


def _scalar(dtype: Any, raw: Any) -> Any:
    array = _Array()
    array.set(raw, dtype, (), "C")
    return array.make()[()]


def _encode_latin1(text: Any, encoding: Any) -> str:
    """Replaces ``_codecs.encode``, which old protocols use for bytes in Python 3.

    Returns the text: encoding one text many times would take more memory than the file.
    """
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"it asks for the codec {_told(encoding)}")
    return text


def _refuse(*args: Any) -> None:
    raise pickle.UnpicklingError("it asks for numpy.ndarray as a function")


_NDARRAY = _Maker(_refuse)
# All names in pickles of arrays and NumPy scalars, in all protocols
_HARMLESS = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Maker(_Dtype),
    ("numpy.core.multiarray", "_reconstruct"): _Maker(_reconstruct),
    ("numpy.core.multiarray", "scalar"): _Maker(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Maker(_frombuffer),
    ("collections", "OrderedDict"): _Maker(OrderedDict),
    ("_codecs", "encode"): _Maker(_encode_latin1),
    ("__builtin__", "bytes"): _Maker(lambda: b""),  # empty bytes in old protocols
}
