"""Files that are whole, or as they were before, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from .errors import TrainingError

__all__ = ["cannot_write", "whole_file", "write_json", "write_whole"]


@contextlib.contextmanager
def whole_file(path: str, sync: bool = True) -> Iterator[IO[bytes]]:
    """A file to write to, so that `path` is whole, or as it was before, whatever happens.

    What is written goes to ``<path>.tmp``, which is renamed at the end. That name is always the
    same: who goes on with an interrupted work overwrites and renames what was left, so that nothing
    stays behind. So only one process may write at a time.

    Args:
        path: of the file, in a folder that exists.
        sync: whether the content is on the disk before the file bears its name, so that it is
            whole also after a power failure; takes milliseconds.

    Raises:
        OSError: it cannot be written, for instance as the disk is full; with `path` as its file
            name, also where a library has raised something else in its place.
    """
    temporary = path + ".tmp"
    before = sys.exc_info()[1]  # what the caller is handling is none of this file's
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
            os.remove(temporary)  # it may be what fills the disk
        cause = _os_error(error, before)
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror, path) from error


def _sync_folder(path: str) -> None:
    """Puts the new name of a file on the disk, where the system can do that to a folder."""
    with contextlib.suppress(OSError):
        folder = os.open(os.path.dirname(path) or os.curdir, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _os_error(error: BaseException | None, before: BaseException | None) -> OSError | None:
    """What the system said; torch.save raises a RuntimeError of its own on top of it.

    Args:
        error: the newest.
        before: one that was there before the file, if any; it and what led to it do not count.
    """
    while error is not None and error is not before:
        if isinstance(error, OSError):
            return error
        error = error.__context__
    return None


def cannot_write(path: str, error: OSError) -> TrainingError:
    """The error of a run that cannot write one of its files.

    Args:
        path: of the file.
        error: what the system said.
    """
    return TrainingError(
        f"{path} cannot be written ({error.strerror or error}). What was saved before is whole:"
        " make room, or see to the folder's permissions, and go on with --resume."
    )


def write_whole(path: str, content: bytes, sync: bool = True) -> None:
    """Writes a file by :func:`whole_file`.

    Args:
        path: of the file, in a folder that exists.
        content: all of it.
        sync: see :func:`whole_file`.
    """
    with whole_file(path, sync) as file:
        file.write(content)


def _without_nan(value: Any) -> Any:
    """The same with None for nan, which json does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(path: str, content: dict[str, Any]) -> None:
    """Writes a json for people to read by :func:`write_whole`, with null for nan.

    Args:
        path: of the file; folders that are missing are made.
        content: what json can hold, and nan.

    Raises:
        ValueError: the content has an infinite number; the file is as before.
    """
    text = json.dumps(_without_nan(content), indent=1, allow_nan=False)
    os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
    write_whole(path, text.encode())
