"""The example of docs/deploy.md: SAHI's slices."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from onenet_runtime import Detector


def test_slices_of_sahi(make_model, make_image, repo_root: Path) -> None:
    pytest.importorskip("sahi", reason="needs SAHI: pip install sahi")
    text = (repo_root / "docs" / "deploy.md").read_text(encoding="utf-8")
    example = next(x for x in re.findall(r"```python\n(.*?)```", text, re.S) if "sahi" in x)
    names: dict[str, object] = {}
    exec(example, names)

    model, image = make_model(min_size=0), make_image(100, 180)
    assert names["detect_in_slices"](str(model), image, side=100)
    sahi_model = names["OneNet"](model_path=str(model), device="cpu")
    slices = {"slice_height": 100, "slice_width": 100, "perform_standard_pred": False}
    found = names["get_sliced_prediction"](image, sahi_model, **slices).object_prediction_list
    boxes = np.array([x.bbox.to_xyxy() for x in found])
    best = Detector(model, threshold=0.8)(image[:, :100])  # the model finds this in every slice
    for shift in (0, 80):  # of the two slices
        distances = np.abs(boxes - best.boxes - np.array([shift, 0, shift, 0])).max(axis=1)
        assert len(best) == 1 and distances.min() < 1
    assert {x.category.name for x in found} == {"cat", "dog"}
