"""Bounds OpenCV, which reads its environment when it is first imported."""

import os

__all__: list[str] = []

# As many pixels as Pillow reads, which Detectron2 uses; OpenCV's own limit is 6 times that, 3 GB
# that a file of some kilobytes can ask for.
MAX_PIXELS = 178_956_970

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
