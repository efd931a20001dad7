"""Export of trained detectors to files that need neither this package nor Detectron2."""

from .formats import FORMATS, open_exported, write_exported
from .metadata import Metadata
from .network import ExportableOneNet
from .parity import Difference, ExportedDetector, compare_detections, compare_on_images

__all__ = [
    "FORMATS",
    "Difference",
    "ExportableOneNet",
    "ExportedDetector",
    "Metadata",
    "compare_detections",
    "compare_on_images",
    "open_exported",
    "write_exported",
]
