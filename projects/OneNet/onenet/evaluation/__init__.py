"""Metrics of end-to-end detection (duplicates, score gap, NMS gap), score thresholds, and
CrowdHuman's metrics.
"""

from .coco import UncachedCOCOEvaluator
from .crowdhuman import CrowdHumanEvaluator, CrowdImage, crowdhuman_report
from .end_to_end import EndToEndEvaluator, record_weights
from .matching import Status, match_detections
from .nms import carries_nms, without_nms
from .thresholds import find_thresholds, load_thresholds, weights_digest

__all__ = [
    "CrowdHumanEvaluator",
    "CrowdImage",
    "EndToEndEvaluator",
    "Status",
    "UncachedCOCOEvaluator",
    "carries_nms",
    "crowdhuman_report",
    "find_thresholds",
    "load_thresholds",
    "match_detections",
    "record_weights",
    "weights_digest",
    "without_nms",
]
