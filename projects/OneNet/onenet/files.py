"""Files that are whole, or as they were before, whatever happens while they are written."""

from __future__ import annotations

import json
import math
import os
from typing import Any

__all__ = ["write_json", "write_whole"]


def write_whole(path: str, content: bytes) -> None:
    """Writes a file so that `path` is whole, or as it was before, whatever happens.

    The temporary name is always the same: who goes on with an interrupted work overwrites and
    renames what was left, so that nothing stays behind. So only one process may write at a time.

    Args:
        path: of the file, in a folder that exists.
        content: all of it.
    """
    with open(path + ".tmp", "wb") as file:
        file.write(content)
    os.replace(path + ".tmp", path)


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
