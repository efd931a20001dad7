"""Detection on many files: in threads, which read while the network runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
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
_MOST_CORES = 8  # since each holds three images


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def detect_files(
    predictor: Predictor, paths: Iterable[str | PathLike[str]], batch: int
) -> Iterator[FileResult]:
    """Detects on images, whatever the score.

    On the CPU each core runs the network on images of its own, which is faster than all cores on
    one. Images of three windows are in memory, each of ``batch`` for each core, or two in all.

    Args:
        predictor: for the images.
        paths: of image files.
        batch: images that the network gets at once, if so many near each other are resized to one
            size.

    Yields:
        A result for each path, in this order.
    """
    cores = _cores() if predictor.providers == ["CPUExecutionProvider"] else 1
    windows = batches(paths, batch * max(cores, 2))
    first = next(windows, [])
    if len(first) < batch * cores:
        cores = 1
    elif cores > 1:
        predictor = predictor.with_one_thread()
    reading: deque[list[Future[np.ndarray]]] = deque()
    running: deque[list[Future[dict[int, FileResult]]]] = deque()
    readers, network = ThreadPoolExecutor(_READERS), ThreadPoolExecutor(cores)
    try:
        for window in chain([first], windows, [[], []]):  # the last two let the others finish
            reading.append([readers.submit(predictor.read, path) for path in window])
            if len(reading) > 1:
                running.append(_start(predictor, reading.popleft(), batch, network))
            if len(running) > 1:
                yield from _results(running.popleft())
    finally:
        readers.shutdown(cancel_futures=True)
        network.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use, at most 8."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(cores, _MOST_CORES)


def _start(
    predictor: Predictor,
    window: Sequence[Future[np.ndarray]],
    batch: int,
    network: ThreadPoolExecutor,
) -> list[Future[dict[int, FileResult]]]:
    """Starts the detection on images that are being read, in batches of one size.

    Returns:
        Results by the places in the window.
    """
    failed: dict[int, FileResult] = {}
    images: dict[int, np.ndarray] = {}
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, future in enumerate(window):
        try:
            images[index] = future.result()
        except ImageError as error:
            failed[index] = error
        else:
            size = predictor.resized_shape(*images[index].shape[:2])
            by_size.setdefault(size, []).append(index)
    chunks = [chunk for indices in by_size.values() for chunk in batches(indices, batch)]
    started = [network.submit(_detect, predictor, {i: images[i] for i in c}) for c in chunks]
    return [*started, network.submit(dict, failed)]


def _detect(predictor: Predictor, images: dict[int, np.ndarray]) -> dict[int, FileResult]:
    """The results of a batch."""
    try:
        found = predictor(list(images.values()))
    except ModelError as error:
        return dict.fromkeys(images, error)
    return {i: (images[i], rows) for i, rows in zip(images, found, strict=True)}


def _results(started: Sequence[Future[dict[int, FileResult]]]) -> list[FileResult]:
    """The results of a window, in order."""
    by_index = {k: v for future in started for k, v in future.result().items()}
    return [by_index[i] for i in range(len(by_index))]
