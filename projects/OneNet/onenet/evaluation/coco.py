"""Detectron2's COCOEvaluator for datasets that may change."""

from __future__ import annotations

from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

__all__ = ["UncachedCOCOEvaluator"]


class UncachedCOCOEvaluator(COCOEvaluator):
    """COCOEvaluator that reads the dataset anew.

    For datasets without a json, COCOEvaluator writes one to its output folder, and keeps it for
    later evaluations although the dataset may have been mended.
    """

    def __init__(self, dataset_name: str, **options: Any) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            options: of COCOEvaluator.
        """
        metadata = MetadataCatalog.get(dataset_name)
        has_json = metadata.get("json_file") is not None
        super().__init__(dataset_name, allow_cached_coco=False, **options)
        if not has_json:  # the next evaluation writes its own
            del metadata.json_file
        self._coco_api.dataset.setdefault("info", {})  # pycocotools 2.0.9 and 2.0.10 need it
