"""The sets of photos: their jsons get the checks of any json in COCO format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from onenet.data.photo_sets import _load
from onenet.utils.errors import DataError


def test_their_jsons_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    box = {"image_id": 1, "category_id": 1, "bbox": [0.1, 0.1, 0.5, 0.5], "area": 1, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [{**box, "id": 1}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    try:
        with pytest.raises(DataError, match="all boxes in .*train.json lie between 0 and 1"):
            _load(str(path), str(tmp_path), "a_set_of_photos")
        content["annotations"][0]["bbox"] = [4, 3, 20, 15]
        path.write_text(json.dumps(content))
        assert len(_load(str(path), str(tmp_path), "a_set_of_photos")) == 1
    finally:
        MetadataCatalog.pop("a_set_of_photos", None)
    with pytest.raises(DataError, match=r"has no file .*gone\.json"):
        _load(str(tmp_path / "gone.json"), str(tmp_path), "a_set_of_photos")
