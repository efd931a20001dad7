"""Detection on many files: they are read while the network runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from os import PathLike
from typing import TypeAlias, TypeVar

import numpy as np

from .errors import ImageError, ModelError
from .predictor import Found, Predictor

__all__ = ["FileResult", "batches", "detect_files"]

T = TypeVar("T")

FileResult: TypeAlias = tuple[np.ndarray, Found] | ImageError | ModelError
"""The image and all that is found in it, or why there is nothing."""

_READERS = 4  # threads; Pillow decodes without Python's lock


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def detect_files(
    predictor: Predictor,
    paths: Iterable[str | PathLike[str]],
    batch: int,
    detect: Callable[[list[np.ndarray]], list[Found]] | None = None,
) -> Iterator[FileResult]:
    """Detects on images, whatever the score; at most four times ``batch`` are in memory.

    Args:
        predictor: reads the images.
        paths: of image files.
        batch: images that the network gets at once, if so many near each other are resized to one
            size.
        detect: for a batch; None for the predictor.

    Yields:
        A result for each path, in this order.
    """
    waiting: deque[list[Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(_READERS)
    try:
        for window in batches(paths, 2 * batch):
            waiting.append([pool.submit(predictor.read, path) for path in window])
            if len(waiting) > 1:  # so that one is read while another is detected on
                yield from _detect(predictor, waiting.popleft(), batch, detect or predictor)
        if waiting:
            yield from _detect(predictor, waiting.popleft(), batch, detect or predictor)
    finally:
        pool.shutdown(cancel_futures=True)


def _detect(
    predictor: Predictor,
    window: Sequence[Future[np.ndarray]],
    batch: int,
    detect: Callable[[list[np.ndarray]], list[Found]],
) -> list[FileResult]:
    """The results of images that are being read, from batches of one size."""
    results: dict[int, FileResult] = {}
    images: dict[int, np.ndarray] = {}
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, future in enumerate(window):
        try:
            images[index] = future.result()
        except ImageError as error:
            results[index] = error
        else:
            size = predictor.resized_shape(*images[index].shape[:2])
            by_size.setdefault(size, []).append(index)
    for indices in by_size.values():
        for chunk in batches(indices, batch):
            try:
                found = detect([images[i] for i in chunk])
            except ModelError as error:
                results.update(dict.fromkeys(chunk, error))
            else:
                rows = zip(chunk, found, strict=True)
                results.update({i: (images[i], found_in) for i, found_in in rows})
    return [results[i] for i in range(len(window))]
