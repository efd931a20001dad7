"""Runs an exported OneNet (``model.onnx``): images in, boxes out.

Needs NumPy, ONNX Runtime and Pillow only, neither PyTorch nor Detectron2; PyAV for videos.

    detector = Detector("model.onnx")
    found = detector("street.jpg")
    print(found.boxes, found.scores, found.class_names)
    found.save("found.jpg")
"""

from .detector import Detections, Detector
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
    "read_image",
    "resize_bilinear",
    "resized_shape",
]
