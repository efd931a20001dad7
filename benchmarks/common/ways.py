"""Several ways to do one thing: timed in turn, and each one's memory in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from .timing import quartiles, round_order

__all__ = [
    "copy_bandwidth",
    "peak_memory",
    "ratios",
    "synchronizer",
    "time_in_turn",
]


def synchronizer(device: str) -> Callable[[], object]:
    """Waits for "cuda"; for "cpu" it does nothing."""
    return torch.cuda.synchronize if device == "cuda" else int


def time_in_turn(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of each way in each round; a round calls all, in an order shuffled anew.

    Args:
        ways: what is called, by name.
        rounds: that count.
        warm_up: rounds before them.
        device: "cpu" or "cuda", which is waited for before and after each call.
        clock: seconds.
    """
    wait = synchronizer(device)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(warm_up + rounds):
        for name in round_order(list(ways), i):
            wait()
            start = clock()
            ways[name]()
            wait()
            if i >= warm_up:
                times[name].append(1000 * (clock() - start))
    return times


def ratios(of: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """Quartiles of the rounds' own ratios."""
    return quartiles([a / b for a, b in zip(of, to, strict=True)])


def peak_memory(make: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """Peak memory of the host during one call, in MiB above what was in use before.

    In a process of its own, in which the call has run once before. Its allocator gives blocks of
    64 KiB and more back to the system as soon as they are free. Linux with glibc only.

    Args:
        make: picklable; builds the problem and returns the call, which may run twice.
        *arguments: of ``make``.

    Raises:
        RuntimeError: the call failed, or its process was killed, for want of memory perhaps.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(make, arguments, sender))
    with mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": str(2**16)}):  # read as it starts
        process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        process.join()
        found = f"the measuring process ended with exit code {process.exitcode}"
    process.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def _measure_memory(make: Any, arguments: Sequence[Any], results: Any) -> None:
    try:
        call = make(*arguments)
        call()  # libraries load what they need
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else what it freed would be used again unseen
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
        before = _peak_kib()
        call()
        results.send((_peak_kib() - before) / 1024)
    except Exception as error:
        results.send(f"{type(error).__name__}: {error}")


def _peak_kib() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def copy_bandwidth(device: str, mib: int = 256, rounds: int = 7) -> float:
    """Bytes a second that a copy moves, read and write together: the best of some rounds."""
    source = torch.zeros(mib * 2**18, device=device)
    target = torch.empty_like(source)
    times = time_in_turn({"copy": lambda: target.copy_(source)}, rounds, device=device)["copy"]
    return 2 * source.numel() * 4 / (min(times) / 1000)
