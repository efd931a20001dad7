"""Datasets; importing this package registers the builtin ones in ``$DETECTRON2_DATASETS``."""

import os

from .bccd import load_voc_boxes, register_all_bccd
from .coco_json import check_same_classes, register_coco_json
from .crowdhuman import (
    convert_odgt,
    make_crowdhuman,
    register_all_crowdhuman,
    register_crowdhuman,
)
from .digits import make_digits, register_all_digits, register_digits
from .digits_drawing import (
    CROWDED_DIGITS,
    Digit,
    DigitsLayout,
    load_glyphs,
    place_digits,
)
from .formats import register_folder
from .image_names import check_images_exist
from .photo_sets import register_all_photos

__all__ = [
    "CROWDED_DIGITS",
    "Digit",
    "DigitsLayout",
    "check_images_exist",
    "check_same_classes",
    "convert_odgt",
    "load_glyphs",
    "load_voc_boxes",
    "make_crowdhuman",
    "make_digits",
    "place_digits",
    "register_all_bccd",
    "register_all_crowdhuman",
    "register_all_digits",
    "register_all_photos",
    "register_coco_json",
    "register_crowdhuman",
    "register_digits",
    "register_folder",
]

_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_digits(_root)
register_all_bccd(_root)
register_all_crowdhuman(_root)
register_all_photos(_root)
