#!/usr/bin/env python
"""onenet_runtime on many image files: a plain loop beside detect_files, in turns.

python benchmarks/many_files.py model.onnx photos/ [more_photos/ ...] [--count 1000]

The images are those of the folders in turn, again from the start where they are too few. Reading
and loading a second session are in the times. Needs `pip install ./projects/OneNet/runtime`.
"""

from __future__ import annotations

from itertools import chain, cycle, islice
from pathlib import Path

from onenet_runtime import Detector

from common import make_parser, quartiles, ratios, record, time_in_turn
from onenet.utils.errors import ConfigError, exit_with_one_sentence

SUFFIXES = {".jpg", ".jpeg", ".png"}


def image_files(folders: list[Path], count: int) -> list[Path]:
    """Images of each folder in turn."""
    found = [sorted(p for p in f.glob("*") if p.suffix.lower() in SUFFIXES) for f in folders]
    if not all(found):
        raise ConfigError(
            f"{folders[found.index([])]} has no image: {', '.join(sorted(SUFFIXES))}."
        )
    in_turn = zip(*(cycle(files) for files in found), strict=True)
    return list(islice(chain.from_iterable(in_turn), count))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    files = image_files(args.folders, args.count)
    detector = Detector(args.model)
    ways = {
        "plain loop": lambda: [len(detector(file)) for file in files],
        "detect_files": lambda: [len(found) for found in detector.detect_files(files)],
        "detect_files, batch=4": lambda: [len(found) for found in detector.detect_files(files, 4)],
    }
    times = time_in_turn(ways, args.rounds, warm_up=0)
    first = times["plain loop"]
    rows = [
        {"what": name, "milliseconds": quartiles(found), "ratio": ratios(found, first)}
        for name, found in times.items()
    ]
    record(args.json, "settings", rows, title=f"{args.count:,} images")


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
