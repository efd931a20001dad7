"""How end-to-end a detector is: duplicates, score gap, and what NMS would change."""

from .end_to_end import EndToEndEvaluator
from .matching import Status, match_detections
from .nms import carries_nms, without_nms

__all__ = ["EndToEndEvaluator", "Status", "carries_nms", "match_detections", "without_nms"]
