"""The inputs of the command line: images, videos and webcams, and the names of what is drawn."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "Source", "UsageError", "expand", "output_names"]

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()
)
VIDEO_SUFFIXES = frozenset(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv".split())
_WEBCAM = re.compile(r"(?:webcam:)?(\d{1,3})")


class UsageError(ValueError):
    """The command line asks for what cannot be; no input has been looked into."""


@dataclass(frozen=True)
class Source:
    """A file or a webcam.

    Attributes:
        location: path of a file, or number of a webcam.
    """

    location: Path | int

    @property
    def is_image(self) -> bool:
        """Whether it is a file, and by its suffix no video."""
        location = self.location
        return isinstance(location, Path) and location.suffix.lower() not in VIDEO_SUFFIXES

    @property
    def name(self) -> str:
        """Of the file, without its folder; of a webcam, "webcam0"."""
        if isinstance(self.location, Path):
            return self.location.name
        return f"webcam{self.location}"

    def __str__(self) -> str:
        """The path of a file, the name of a webcam."""
        return str(self.location) if isinstance(self.location, Path) else self.name


def expand(inputs: Sequence[str]) -> list[Source]:
    """All files and webcams that are named; one that is named twice comes once.

    Args:
        inputs: files, folders (their images, not those of folders within), patterns such as
            "images/*.jpg", numbers of webcams such as "0" or "webcam:0".

    Raises:
        UsageError: a folder has no images, or no file matches a pattern.
    """
    sources: dict[Path | int, Source] = {}
    for text in inputs:
        for location in _locations(text):
            key = location.resolve() if isinstance(location, Path) else location
            sources.setdefault(key, Source(location))
    return list(sources.values())


def _locations(text: str) -> Iterator[Path | int]:
    path = Path(text)
    webcam = _WEBCAM.fullmatch(text)
    if path.is_dir():
        yield from _images_of(path)
    elif webcam and not path.exists():
        yield int(webcam[1])
    elif glob.has_magic(text) and not path.exists():
        matches = map(Path, sorted(glob.glob(text, recursive=True)))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise UsageError(
                f"No file matches the pattern {text}: check the pattern (for the files of folders"
                " that it matches, add /*)."
            )
        yield from files
    else:
        yield path  # one that does not exist is reported when it is read


def _images_of(folder: Path) -> list[Path]:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(
            f"The folder {folder} cannot be read ({error.strerror}): check its permissions."
        ) from None
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not images:
        raise UsageError(
            f"The folder {folder} has no images: name one that has, or a pattern such as"
            f" '{folder}/**/*.jpg' for those in folders within."
        )
    return images


def output_names(sources: Sequence[Source]) -> list[str]:
    """A name of a file for each source, no two the same, not even but for upper case.

    Images keep their names where their suffix is a known one, else ".png" is added; videos get the
    suffix ".mp4". Of equal names, the second becomes "name_2.jpg".
    """
    taken: set[str] = set()
    names = []
    for source in sources:
        name = source.name
        if not source.is_image:
            name = f"{Path(name).stem}.mp4"
        elif Path(name).suffix.lower() not in IMAGE_SUFFIXES:
            name = f"{name}.png"
        unique, count = name, 1
        while unique.lower() in taken:
            count += 1
            unique = f"{Path(name).stem}_{count}{Path(name).suffix}"
        taken.add(unique.lower())
        names.append(unique)
    return names
