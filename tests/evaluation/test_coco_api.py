"""faster-coco-eval in the place of pycocotools: the same numbers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from onenet.evaluation.ap import Scene, precision_table
from onenet.evaluation.coco_api import coco_api

NUM_CLASSES = 6


def random_scene(rng: np.random.Generator, max_objects: int) -> Scene:
    """Objects, some of them crowd, and detections near them, far from them, with equal scores."""
    count = int(rng.integers(0, max_objects + 1))
    gt_boxes = np.concatenate(
        (rng.uniform(0, 300, (count, 2)), rng.uniform(0.5, 120, (count, 2))), axis=1
    )
    gt_classes = rng.integers(0, NUM_CLASSES - 1, count)  # the last has no objects
    near = rng.integers(0, count, int(rng.integers(0, 150))) if count else np.zeros(0, int)
    boxes = gt_boxes[near] + rng.normal(0, 4, (len(near), 4))
    boxes[:, 2:] = boxes[:, :2] + np.abs(boxes[:, 2:])
    is_right = rng.random(len(near)) < 0.8
    return Scene(
        boxes.astype(np.float32),
        rng.random(len(near)).round(2).astype(np.float32),
        np.where(is_right, gt_classes[near], rng.integers(0, NUM_CLASSES, len(near))),
        gt_boxes,
        gt_classes,
        rng.random(count) < 0.2,
    )


@pytest.mark.parametrize(
    ("num_images", "max_objects", "max_dets"), [(0, 3, 100), (1, 0, 100), (40, 9, 100), (25, 30, 7)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_both_give_the_same_table(
    num_images: int, max_objects: int, max_dets: int, seed: int, monkeypatch
) -> None:
    pytest.importorskip("faster_coco_eval")
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, max_objects) for _ in range(num_images)]
    assert coco_api()[1] is not COCOeval
    found = precision_table(scenes, max_dets)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert coco_api()[1] is COCOeval
    expected = precision_table(scenes, max_dets)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    assert expected.size == 0 or 0.01 < expected.mean() < 0.99
