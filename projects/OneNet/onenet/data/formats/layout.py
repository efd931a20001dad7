"""The files of a dataset's folder, and which split each belongs to."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image

from ...utils.errors import DataError

__all__ = ["SPLITS", "Layout", "by_split", "is_image", "look_at", "read_lines", "split_of", "walk"]

SPLITS = {  # what a file or folder of a split is called
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_MAX_TEXT = 2**24  # bytes


@dataclass(frozen=True)
class Layout:
    """A folder, and the names of all files in it, relative to it and in order.

    Hidden files are left out; links are followed.
    """

    folder: str
    files: tuple[str, ...]

    def path(self, name: str) -> str:
        """Path of a file."""
        return os.path.normpath(os.path.join(self.folder, name))

    def ending(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes, in any letter case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def images(self) -> list[str]:
        """The image files."""
        return [name for name in self.files if is_image(name)]

    def starts(self, name: str) -> str:
        """The beginning of a file, without the zero bytes of UTF-16."""
        with open(self.path(name), "rb") as file:
            return file.read(2**16).replace(b"\0", b"").decode("utf-8", "replace")


def look_at(folder: str) -> Layout:
    """Lists a folder.

    Raises:
        DataError: it is missing or cannot be read.
    """
    if not os.path.isdir(folder):
        raise DataError(
            f"DATASETS.FOLDER: there is no folder {folder}: check the path, and unpack an archive"
            " first" + (", or give a json by DATASETS.TRAIN_JSON" if os.path.isfile(folder) else "")
        )
    return Layout(folder, tuple(sorted(walk(folder))))


def walk(folder: str, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    """Names of the files in a folder and the folders in it, relative to it.

    A training's output folder in it is left out.

    Args:
        folder: the top one.
        prefix: the folder in it at which to begin, with a slash at its end.
        above: real paths of the folders above, as a link may lead back to one.
    """
    path = os.path.join(folder, prefix)
    real = os.path.realpath(path)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder {path} cannot be read ({error.strerror})") from error
    if prefix and {"config.yaml", "log.txt"} <= {entry.name for entry in entries}:
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if os.path.isdir(entry.path):  # a link that leads to itself counts as a file
            yield from walk(folder, f"{prefix}{entry.name}/", (*above, real))
        else:
            yield prefix + entry.name


@functools.cache
def _image_suffixes() -> frozenset[str]:
    suffixes = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in suffixes if kind in Image.OPEN)


def is_image(name: str) -> bool:
    """Whether a file is named as an image that Pillow may open."""
    return os.path.splitext(name)[1].lower() in _image_suffixes()


def split_of(name: str) -> str:
    """The split that the folders of a file name: "train", "val", "test" or ""."""
    for part in PurePosixPath(name).parts[:-1]:
        word = re.sub(r"^obj_(.+)_data$", r"\1", part.lower())
        word = re.sub(r"[\d_-]+$", "", word)  # train2017
        if word in SPLITS:
            return SPLITS[word]
    return ""


def by_split(names: Iterable[str], source: str) -> dict[str, list[str]]:
    """Sorts files into splits by their folders; without any split, all are for training.

    Raises:
        DataError: some are in the folder of a split, others are not; or none is for training.
    """
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(split_of(name), []).append(name)
    if "" in splits and len(splits) > 1:
        first = splits.pop("")[0]
        others = ", ".join(sorted(splits))
        raise DataError(
            f"{source} has files in folders named after splits ({others}), and others that are"
            f" not, the first is {first}: move it to a split, or out of the folder"
        )
    return {"train": splits[""]} if "" in splits else splits


def read_lines(path: str) -> list[str]:
    """Lines of a small text file, UTF-8 with or without a byte order mark.

    Raises:
        DataError: it is missing, too large or no such text.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_TEXT + 1)
        if len(content) > _MAX_TEXT:
            raise DataError(f"{path} is larger than {_MAX_TEXT:,} bytes: check what it is")
        return content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error}): save it as UTF-8") from error
