"""Export of trained detectors to files that need neither this package nor Detectron2."""

from .checked import ExportOptions, average_precisions, check_output, export_checked
from .formats import FORMATS, open_exported, write_exported
from .metadata import Metadata
from .network import ExportableOneNet
from .parity import Difference, ExportedDetector, compare_detections, compare_on_images
from .web import write_page

__all__ = [
    "FORMATS",
    "Difference",
    "ExportOptions",
    "ExportableOneNet",
    "ExportedDetector",
    "Metadata",
    "average_precisions",
    "check_output",
    "compare_detections",
    "compare_on_images",
    "export_checked",
    "open_exported",
    "write_exported",
    "write_page",
]
