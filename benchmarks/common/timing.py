"""Timing many things on one machine so that they can be compared: in turn, and in random order."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["Subject", "Times", "measure", "quartiles", "round_order"]

K = TypeVar("K", bound=Hashable)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """The median, and the range that holds the middle half of the values.

    Args:
        values: one or more; between the sorted ones it interpolates.

    Returns:
        "lower", "median" and "upper".
    """
    found = statistics.quantiles(
        [*values] * (2 if len(values) == 1 else 1), n=4, method="inclusive"
    )
    return dict(zip(("lower", "median", "upper"), found, strict=True))


@dataclass(frozen=True)
class Subject:
    """What is timed.

    Attributes:
        convert: from a batch (N, 3, H, W) uint8 to what ``network`` takes; is not timed.
        network: from that to what ``postprocess`` takes.
        postprocess: from that to the detections; None where ``network`` gives them already.
    """

    convert: Callable[[Tensor], Any]
    network: Callable[[Any], Any]
    postprocess: Callable[[Any], Any] | None = None

    def __call__(self, batch: Tensor) -> Any:
        """The detections."""
        outputs = self.network(self.convert(batch))
        return outputs if self.postprocess is None else self.postprocess(outputs)


@dataclass
class Times:
    """Of one subject, an entry a round.

    Attributes:
        network: milliseconds of ``Subject.network`` for a batch.
        total: milliseconds of the whole for a batch.
    """

    network: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)

    @property
    def postprocessing(self) -> list[float]:
        """Milliseconds of ``Subject.postprocess`` for a batch."""
        return [total - network for network, total in zip(self.network, self.total, strict=True)]


def round_order(keys: Sequence[K], index: int, seed: int = 0) -> list[K]:
    """The order in which a round visits the keys: each once, shuffled.

    Args:
        keys: of all subjects.
        index: of the round.
        seed: another one gives other orders.
    """
    order = list(keys)
    random.Random(f"{seed}/{index}").shuffle(order)
    return order


def measure(
    subjects: Mapping[K, Subject],
    batches: Sequence[Tensor],
    rounds: int,
    warm_up: int = 3,
    rest: float = 0.01,
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[K, Times]:
    """Times every subject once a round, in an order shuffled anew in each.

    So that a machine that becomes slower or faster does so for all alike, and what a subject leaves
    behind in caches is not always met by the same one. Before each timed call the subject is called
    once untimed, on the same batch: what is measured is a program that runs one detector.

    Args:
        subjects: by any key.
        batches: (N, 3, H, W) uint8 each, on the subjects' device; taken in turn, the same one for
            all subjects of a round.
        rounds: that count.
        warm_up: rounds before them that do not.
        rest: seconds of sleep before each subject, for the threads of the last one to fall asleep.
        synchronize: waits until the device has done what it was told.
        clock: seconds.
        sleep: takes seconds.
    """
    times: dict[K, Times] = {key: Times() for key in subjects}
    for i in range(warm_up + rounds):
        batch = batches[i % len(batches)]
        for key in round_order(list(subjects), i):
            sleep(rest)
            network, total = _time_once(subjects[key], batch, synchronize, clock)
            if i >= warm_up:
                times[key].network.append(network)
                times[key].total.append(total)
    return times


def _time_once(
    subject: Subject,
    batch: Tensor,
    synchronize: Callable[[], object],
    clock: Callable[[], float],
) -> tuple[float, float]:
    """Milliseconds until the network is done, and until all is."""
    inputs = subject.convert(batch)
    subject(batch)
    synchronize()
    start = clock()
    outputs = subject.network(inputs)
    synchronize()
    middle = end = clock()
    if subject.postprocess is not None:
        subject.postprocess(outputs)
        synchronize()
        end = clock()
    return 1000 * (middle - start), 1000 * (end - start)
