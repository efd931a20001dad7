"""What the scripts of `benchmarks/` share: timing, memory, and detectors in several runtimes."""

from .parts import PARTS, Stopwatch, time_parts
from .report import describe_detector, describe_machine, environment, results, to_markdown
from .runtimes import COMPLETE, EVERY_CANDIDATE, NETWORK, RUNTIMES, Key, Setting, keys_of, prepare
from .stages import Detector, Network, Postprocess, build_detector, count_candidates, load_batches
from .timing import Quartiles, Subject, Times, measure, round_order
from .ways import (
    copy_bandwidth,
    describe_ms,
    describe_ratio,
    peak_memory,
    ratios,
    synchronizer,
    time_in_turn,
)

__all__ = [
    "COMPLETE",
    "EVERY_CANDIDATE",
    "NETWORK",
    "PARTS",
    "RUNTIMES",
    "Detector",
    "Key",
    "Network",
    "Postprocess",
    "Quartiles",
    "Setting",
    "Stopwatch",
    "Subject",
    "Times",
    "build_detector",
    "copy_bandwidth",
    "count_candidates",
    "describe_detector",
    "describe_machine",
    "describe_ms",
    "describe_ratio",
    "environment",
    "keys_of",
    "load_batches",
    "measure",
    "peak_memory",
    "prepare",
    "ratios",
    "results",
    "round_order",
    "synchronizer",
    "time_in_turn",
    "time_parts",
    "to_markdown",
]
