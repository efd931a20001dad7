"""Latency of detectors, network and post-processing apart, in several runtimes."""

from .report import describe_detector, environment, results, to_markdown
from .runtimes import COMPLETE, EVERY_CANDIDATE, NETWORK, RUNTIMES, Key, Setting, keys_of, prepare
from .stages import Detector, Network, Postprocess, build_detector, count_candidates, load_batches
from .timing import Quartiles, Subject, Times, measure, round_order

__all__ = [
    "COMPLETE",
    "EVERY_CANDIDATE",
    "NETWORK",
    "RUNTIMES",
    "Detector",
    "Key",
    "Network",
    "Postprocess",
    "Quartiles",
    "Setting",
    "Subject",
    "Times",
    "build_detector",
    "count_candidates",
    "describe_detector",
    "environment",
    "keys_of",
    "load_batches",
    "measure",
    "prepare",
    "results",
    "round_order",
    "to_markdown",
]
