"""Detectron2's COCOEvaluator for datasets that may change."""

from __future__ import annotations

import os
import re
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator

__all__ = ["UncachedCOCOEvaluator"]


class UncachedCOCOEvaluator(COCOEvaluator):
    """COCOEvaluator that reads the dataset anew.

    For datasets without a json, COCOEvaluator writes one to its output folder, and keeps it for
    later evaluations although the dataset may have been mended. It is named after the dataset,
    whose name may have slashes.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, **options: Any) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            output_dir: of COCOEvaluator; needed for a dataset without a json.
            options: of COCOEvaluator.
        """
        metadata = MetadataCatalog.get(dataset_name)
        has_json = metadata.get("json_file") is not None
        if not has_json and output_dir is not None:
            # Its end tells datasets apart; a file name has at most 255 bytes
            file_name = re.sub(r"[^\w.-]+", "_", dataset_name).strip("_")[-60:]
            path = os.path.join(output_dir, f"{file_name}_coco_format.json")
            convert_to_coco_json(dataset_name, path, allow_cached=False)
            metadata.json_file = path
        super().__init__(dataset_name, output_dir=output_dir, **options)
        if not has_json:  # the next evaluation writes its own
            del metadata.json_file
        self._coco_api.dataset.setdefault("info", {})  # pycocotools 2.0.9 and 2.0.10 need it
