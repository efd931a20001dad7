"""Atomic file writing, and reading of untrusted json and yaml within bounds."""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

import yaml

from .errors import ConfigError, DataError, TrainingError

__all__ = [
    "cannot_write",
    "parse_yaml",
    "read_json",
    "read_yaml",
    "whole_file",
    "write_json",
    "write_whole",
]

MAX_JSON_BYTES = 2**33  # COCO's own annotations have 0.5 GB, those of Objects365 about 3
MAX_YAML_BYTES = 2**20
MAX_YAML_NODES = 10**5  # after expanding aliases


@contextlib.contextmanager
def whole_file(path: str, sync: bool = True) -> Iterator[IO[bytes]]:
    """Opens a file for atomic writing: afterwards `path` is either complete or unchanged.

    Writes to ``<path>.tmp`` and renames it at the end. The name is fixed, so that a repeated run
    overwrites what an interrupted one left; only one process may write at a time.

    Args:
        path: of the file, in an existing folder.
        sync: whether to fsync before renaming, so that the file also survives a power failure;
            takes milliseconds.

    Raises:
        OSError: the file cannot be written, for instance because the disk is full. Its file name is
            `path`, even if a library raised another error instead.
    """
    temporary = path + ".tmp"
    before = sys.exc_info()[1]  # an error that the caller is handling
    try:
        with open(temporary, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync:
            _sync_folder(path)
    except Exception as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)  # frees the disk
        cause = _os_error(error, before)
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror, path) from error


def _sync_folder(path: str) -> None:
    """Syncs the folder of a file, if the system supports that."""
    with contextlib.suppress(OSError):
        folder = os.open(os.path.dirname(path) or os.curdir, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _os_error(error: BaseException | None, before: BaseException | None) -> OSError | None:
    """Finds the OSError behind an error, after `before`; torch.save raises another on top of it."""
    while error is not None and error is not before:
        if isinstance(error, OSError):
            return error
        error = error.__context__
    return None


def cannot_write(path: str, error: OSError) -> TrainingError:
    """Returns the error for a file that a run cannot write, with the system's reason."""
    return TrainingError(
        f"{path} cannot be written ({error.strerror or error}). What was saved before is whole:"
        " make room, or see to the folder's permissions, and go on with --resume."
    )


def write_whole(path: str, content: bytes, sync: bool = True) -> None:
    """Writes a file with :func:`whole_file`.

    Args:
        path: of the file, in a folder that exists.
        content: of the file.
        sync: see :func:`whole_file`.
    """
    with whole_file(path, sync) as file:
        file.write(content)


def _without_nan(value: Any) -> Any:
    """Replaces nan by None, since json has no nan."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(path: str, content: dict[str, Any]) -> None:
    """Writes an indented json file with :func:`write_whole`; nan becomes null.

    Args:
        path: of the file; missing folders are created.
        content: json values, and nan.

    Raises:
        ValueError: the content has an infinite number; the file is unchanged.
    """
    text = json.dumps(_without_nan(content), indent=1, allow_nan=False)
    os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
    write_whole(path, text.encode())


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Reads a json file.

    Args:
        path: of the file.
        max_bytes: limit of the file's size; in memory it may take 20 times that.

    Raises:
        DataError: the file is missing, too large, nested too deeply, or not json.
    """
    try:
        with open(path, "rb") as file:
            content = _read_bounded(file, path, max_bytes, "leave out of it what is not needed")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path") from error
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be read: get the file again") from error
    except json.JSONDecodeError as error:
        if content.startswith(codecs.BOM_UTF8):
            raise DataError(
                f"{path} begins with a byte order mark (BOM), which json does not allow: save it as"
                " UTF-8 without BOM"
            ) from error
        raise DataError(
            f"{path} is not valid json: {error.msg} at line {error.lineno}, column {error.colno};"
            " get or export it again"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a json file: it is not UTF-8 text ({error}); save it as UTF-8"
        ) from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise DataError(f"{path} has a number that cannot be read ({error})") from error


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Reads a yaml file with yaml's safe loader, which creates no Python objects.

    Raises:
        ConfigError: the file is missing, too large, nested too deeply, or not plain yaml; or its
            aliases expand to too many values.
    """
    try:
        with open(path, "rb") as file:
            text = bytes(_read_bounded(file, path, MAX_YAML_BYTES, "shorten it"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except DataError as error:
        raise ConfigError(f"{error}.") from error
    return parse_yaml(text, path)


def parse_yaml(text: bytes | str, path: str | os.PathLike[str]) -> Any:
    """Parses yaml text with yaml's safe loader, which creates no Python objects.

    Args:
        text: of at most ``MAX_YAML_BYTES``.
        path: what messages call the text.

    Raises:
        ConfigError: see :func:`read_yaml`.
    """
    try:
        if len(text) > MAX_YAML_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_YAML_BYTES:,} bytes")
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None and _expanded_size(root, {}) > MAX_YAML_NODES:
            raise ConfigError(
                f"{path} has aliases that stand for more than {MAX_YAML_NODES:,} values, or for"
                " themselves: write out what they stand for"
            )
        return None if root is None else loader.construct_document(root)
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply to be read.") from error
    except ConfigError as error:
        raise ConfigError(f"{error}.") from error
    except Exception as error:  # constructors of tagged values may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{path} is no plain yaml, which alone is accepted: {reason}; mend that line."
        ) from error


def _read_bounded(
    file: BinaryIO, path: str | os.PathLike[str], max_bytes: int, cure: str
) -> bytearray:
    content = bytearray()
    # In chunks: a single read allocates the maximum
    size = os.fstat(file.fileno()).st_size
    while size <= max_bytes and (piece := file.read(2**20)):
        content += piece
        size = len(content)
    if size > max_bytes:
        raise DataError(
            f"{path} is larger than {max_bytes:,} bytes, the most that is read: check that it is"
            f" the right file, and {cure}"
        )
    return content


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Number of nodes after expanding aliases."""
    if id(node) not in sizes:
        sizes[id(node)] = MAX_YAML_NODES + 1  # for nodes that contain themselves
        children = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in children)
    return sizes[id(node)]
