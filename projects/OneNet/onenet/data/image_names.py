"""Whether a dataset's images exist, and by what a name differs from that of an existing file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable
from urllib.parse import unquote

from ..utils.errors import DataError

__all__ = ["check_images_exist"]

# What names of the same image may differ in -> a function that removes the difference
_DIFFERENCES: dict[str, Callable[[str], str]] = {
    "backslashes, where a path has slashes": lambda name: name.replace("\\", "/"),
    "characters written as in a web address, such as %20": unquote,
    "the Unicode form of its accents (NFC or NFD)": lambda name: unicodedata.normalize("NFC", name),
    "letter case": str.casefold,
}


def check_images_exist(source: str, image_root: str, file_names: Iterable[str]) -> None:
    """Checks that a dataset's images exist; lists each folder only once.

    Args:
        source: the annotation file, for the message.
        image_root: the folder that the names are relative to.
        file_names: of the images; may include folders.

    Raises:
        DataError: the folder or an image is missing; names a file that may be meant.
    """
    if not os.path.isdir(image_root):
        raise DataError(
            f"there is no image folder {image_root} for {source}: check the path of the images"
        )
    listings: dict[str, set[str]] = {}
    missing = []
    for file_name in file_names:
        folder, base = os.path.split(os.path.join(image_root, file_name))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder]:
            missing.append(file_name)
    if missing:
        raise DataError(
            f"{len(missing)} of the images that {source} names are not in {image_root}, the first "
            f"is {missing[0]}: {_cure(image_root, missing[0])}"
        )


def _cure(image_root: str, file_name: str) -> str:
    found = _similar(image_root, file_name)
    if found is None:
        return "check that the two belong together"
    causes = [
        cause
        for cause in _DIFFERENCES
        if _same_form(file_name, without=cause) != _same_form(found, without=cause)
    ]
    return (
        f"there is {found}, from which it differs in {' and '.join(causes)}; write the names as the"
        " files have them"
    )


def _same_form(name: str, without: str = "") -> str:
    """The name without any of the differences, except `without`."""
    for cause, change in _DIFFERENCES.items():
        if cause != without:
            name = change(name)
    return name


def _similar(image_root: str, file_name: str) -> str | None:
    """An existing file, relative to `image_root`, whose name has the same form."""
    found = ""
    for part in _same_form(file_name).split("/"):
        folder = os.path.join(image_root, found)
        entries = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        entry = next((entry for entry in entries if _same_form(entry) == part), None)
        if entry is None:
            return None
        found = os.path.join(found, entry)
    return found
