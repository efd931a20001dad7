"""What the scripts of `benchmarks/` share: timing, memory, and detectors in several runtimes."""

from .engines import (
    Opener,
    litert_opener,
    onnxruntime_opener,
    openvino_opener,
    wasm_opener,
)
from .parts import PARTS, Stopwatch, time_parts
from .report import inference_rows, make_parser, parts_rows, record
from .runtimes import COMPLETE, EVERY_CANDIDATE, NETWORK, RUNTIMES, Key, Setting, keys_of, prepare
from .stages import Detector, Network, Postprocess, build_detector, count_candidates, load_batches
from .tables import TABLES
from .timing import Subject, Times, measure, quartiles, round_order
from .ways import (
    copy_bandwidth,
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
    "TABLES",
    "Detector",
    "Key",
    "Network",
    "Opener",
    "Postprocess",
    "Setting",
    "Stopwatch",
    "Subject",
    "Times",
    "build_detector",
    "copy_bandwidth",
    "count_candidates",
    "inference_rows",
    "keys_of",
    "litert_opener",
    "load_batches",
    "make_parser",
    "measure",
    "onnxruntime_opener",
    "openvino_opener",
    "parts_rows",
    "peak_memory",
    "prepare",
    "quartiles",
    "ratios",
    "record",
    "round_order",
    "synchronizer",
    "time_in_turn",
    "time_parts",
    "wasm_opener",
]
