"""Files that list the names of the classes."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

from ...utils.errors import DataError
from .layout import Layout, read_lines

__all__ = ["check_names", "find_names"]


def check_names(names: Iterable[tuple[str, Any]]) -> list[str]:
    """Checks names of classes.

    Args:
        names: where each stands, such as "line 3 of classes.txt", and the name.

    Raises:
        DataError: a name is empty, no text, or there twice.
    """
    seen: dict[str, str] = {}
    for where, name in names:
        if type(name) is int:  # yaml reads a name of digits as a number
            name = str(name)
        if not isinstance(name, str):  # and the name no as False
            raise DataError(
                f"{where} is {reprlib.repr(name)}, and not the name of a class: write it in quotes"
            )
        name = name.strip()
        if not name:
            raise DataError(f"{where} is empty: each class needs a name")
        if name in seen:
            raise DataError(
                f"{where} has the name {name!r} of {seen[name]} again: rename one of the two"
                " classes, or merge them"
            )
        seen[name] = where
    return list(seen)


def find_names(layout: Layout, file_names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Reads the file that lists the classes, one a line.

    Args:
        layout: of the dataset.
        file_names: what such a file may be called.

    Returns:
        The names, and the files that have them; both empty if there is none.

    Raises:
        DataError: a file is broken, or two files differ.
    """
    files = [name for name in layout.files if name.rsplit("/", 1)[-1].lower() in file_names]
    found = [_read_names(layout.path(name)) for name in files]
    for name, names in zip(files, found, strict=True):
        if names != found[0]:
            raise DataError(
                f"{layout.path(files[0])} and {layout.path(name)} name different classes"
                f" ({', '.join(found[0])} and {', '.join(names)}): keep one of the files"
            )
    return (found[0] if found else []), files


def _read_names(path: str) -> list[str]:
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    if path.endswith("labelmap.txt"):  # name:color:parts:actions
        lines = ["" if line.startswith("#") else line.split(":")[0] for line in lines]
        places = [(f"line {i} of {path}", line) for i, line in enumerate(lines, 1) if line]
    else:
        places = [(f"line {i} of {path}", line) for i, line in enumerate(lines, 1)]
    names = check_names(places)
    if not names:
        raise DataError(f"{path} is empty: write the names of the classes into it, one a line")
    return names
