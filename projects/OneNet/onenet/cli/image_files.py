"""The images of a command line, and the files of their pictures."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import get_cfg

from ..data.sample_images import IMAGE_SUFFIXES
from ..utils.errors import ConfigError

__all__ = ["find_images", "is_file_name", "make_folder", "plan_outputs", "split_overrides"]


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Splits words into paths and the config overrides behind them."""
    nodes = set(get_cfg())
    for i, word in enumerate(words):
        if word.split(".")[0] in nodes and not os.path.exists(word):
            return words[:i], words[i:]
    return words, []


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The images that files, folders and globs name, in this order, each once.

    Raises:
        ConfigError: there are none.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():  # a name may have brackets
            matches = [path]
        else:
            matches = [
                Path(p) for p in sorted(glob.glob(text, recursive=True)) if os.path.isfile(p)
            ]
        if not matches:
            what = "the folder has no images" if path.is_dir() else "there is no such file"
            raise ConfigError(f"{text}: {what}.")
        found.update(dict.fromkeys(matches))
    return list(found)


def plan_outputs(images: Sequence[Path], output: str | None) -> list[Path | None]:
    """Where each image's picture goes.

    Args:
        images: files.
        output: a folder, or a file for a single image; None for windows.

    Returns:
        Different files, none of them an image; None for a window.

    Raises:
        ConfigError: the output is no such file, or one of the images.
    """
    if output is None:
        return [None] * len(images)
    target = Path(output)
    known = target.suffix.lower() in IMAGE_SUFFIXES
    if is_file_name(target) and (known or len(images) == 1):
        if len(images) > 1:
            raise ConfigError(
                f"--output {output} is one file, but there are {len(images)} images; name a folder."
            )
        if not known:
            raise ConfigError(
                f"--output {output}: '{target.suffix}' is no type of image; use .png."
            )
        planned = [target]
    else:
        planned, taken = [], set()
        for image in images:
            name, number = f"{image.stem}.png", 1
            while name in taken:  # from another folder, or of another type
                number += 1
                name = f"{image.stem}_{number}.png"
            taken.add(name)
            planned.append(target / name)
    sources = {image.resolve() for image in images}
    for path in planned:
        if path.resolve() in sources:
            raise ConfigError(f"--output would overwrite the input {path}; name another folder.")
    return planned


def is_file_name(path: Path) -> bool:
    """Whether an output is meant as a file."""
    return bool(path.suffix) and not path.is_dir()


def make_folder(folder: Path) -> None:
    """Makes a folder unless it exists, and tries to write into it.

    Raises:
        ConfigError: it cannot be made or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"Cannot write into {folder} ({error.strerror}); choose another folder."
        ) from error
