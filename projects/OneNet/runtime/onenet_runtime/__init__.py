"""Runs an exported OneNet (``model.onnx``): images in, boxes out.

Needs NumPy, ONNX Runtime and Pillow only, neither PyTorch nor Detectron2; OpenCV for videos.

    detector = Detector("model.onnx")
    boxes, scores, classes, names = detector("street.jpg")
"""

from .detector import Detections, Detector
from .draw import draw_detections
from .errors import AnnotationsError, ImageError, ModelError
from .images import read_image
from .metadata import ModelMetadata
from .resize import resize_bilinear, resized_shape

__version__ = "0.1.0"

__all__ = [
    "AnnotationsError",
    "Detections",
    "Detector",
    "ImageError",
    "ModelError",
    "ModelMetadata",
    "draw_detections",
    "read_image",
    "resize_bilinear",
    "resized_shape",
]
