"""COCO's evaluation: faster-coco-eval's where it is installed, else pycocotools'."""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["coco_api"]


def coco_api() -> tuple[type[Any], type[Any]]:
    """COCO and COCOeval, of the package that is quicker.

    faster-coco-eval (Apache-2.0) matches and accumulates in C++ and evaluates as pycocotools does;
    where its numbers differ, it is in the last bit (tests/evaluation/test_coco_api.py). Of scores
    that are no numbers it takes none.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it tells of every table
    return COCO, COCOeval_faster
