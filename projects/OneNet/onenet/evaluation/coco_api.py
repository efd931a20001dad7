"""COCO's evaluation, by faster-coco-eval if installed, else by pycocotools."""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["coco_api"]


def coco_api() -> tuple[type[Any], type[Any]]:
    """Returns the classes COCO and COCOeval of the faster package.

    faster-coco-eval (Apache-2.0) matches and accumulates in C++. Its results differ from
    pycocotools' at most in the last bit (tests/evaluation/test_coco_api.py). It drops NaN scores.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it logs every table
    return COCO, COCOeval_faster
