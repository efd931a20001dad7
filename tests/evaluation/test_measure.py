"""The evaluation of flat arrays: pycocotools' numbers, of all and of parts; plain definitions."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou, nms

from onenet.evaluation.ap import Precisions, mean_ap
from onenet.evaluation.matching import Pairs
from onenet.evaluation.measure import CROWDING_BINS, measure
from onenet.evaluation.scenes import Scenes, nms_survivors, overlapping_pairs

NUM_CLASSES = 6


def random_scenes(seed: int, num_images: int, max_objects: int, places: int | None = None):
    """Objects, some of them crowd, and detections near them, far from them, with equal scores.

    Args:
        seed: of the random numbers.
        num_images: some may have no objects or no detections.
        max_objects: of an image.
        places: rounds the coordinates, for overlaps that are equal; None not to.
    """
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, max_objects + 1, num_images)
    gt_images = np.repeat(np.arange(num_images), counts)
    total = counts.sum()
    gt_boxes = np.concatenate((rng.uniform(0, 150, (total, 2)), rng.uniform(5, 120, (total, 2))), 1)
    gt_classes = rng.integers(0, NUM_CLASSES - 1, total)  # the last has no objects
    near = np.sort(rng.integers(0, max(total, 1), 8 * total))
    boxes = gt_boxes[near] + rng.normal(0, 4, (len(near), 4))
    boxes[:, 2:] = np.abs(boxes[:, 2:])
    if places is not None:
        gt_boxes, boxes = gt_boxes.round(places), boxes.round(places)
    is_right = rng.random(len(near)) < 0.8
    return Scenes(
        num_images,
        gt_images[near],
        boxes,
        rng.random(len(near)).round(2),
        np.where(is_right, gt_classes[near], rng.integers(0, NUM_CLASSES, len(near))),
        gt_images,
        gt_boxes,
        gt_classes,
        rng.random(total) < 0.2,
    )


def pycocotools_table(
    scenes: Scenes, max_dets: int, detections: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """COCOeval's precisions of a part; all crowd regions belong to it."""
    belongs = scenes.is_crowd.copy()
    belongs[~scenes.is_crowd] = objects
    classes = sorted(set(scenes.object_classes[objects].tolist()))
    if not classes:
        return np.zeros((10, 101, 0))
    columns = (
        (scenes.gt_images, scenes.gt_classes, scenes.gt_boxes, scenes.is_crowd, belongs),
        (scenes.images, scenes.classes, scenes.boxes, scenes.scores, detections),
    )
    apis = []
    for entries, key in zip(columns, ("iscrowd", "score"), strict=True):
        api = COCO()
        rows = zip(*(values.tolist() for values in entries), strict=True)
        rows = [row[:-1] for row in rows if row[-1]]
        api.dataset = {
            "images": [{"id": i} for i in range(scenes.num_images)],
            "categories": [{"id": c} for c in classes],
            "annotations": [
                {"id": i, "image_id": image, "category_id": label, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0, key: value}
                for i, (image, label, box, value) in enumerate(rows, start=1)
            ],
        }  # fmt: skip
        apis.append(api)
    with contextlib.redirect_stdout(io.StringIO()):
        for api in apis:
            api.createIndex()
        evaluation = COCOeval(*apis, "bbox")
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0]


@pytest.mark.parametrize(
    ("num_images", "max_objects", "max_dets", "places"),
    [(1, 0, 100, None), (30, 9, 100, None), (20, 20, 7, None), (30, 12, 100, -1)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_precisions_are_pycocotools(
    seed: int, num_images: int, max_objects: int, max_dets: int, places: int | None
) -> None:
    scenes = random_scenes(seed, num_images, max_objects, places)
    rng = np.random.default_rng(seed)
    everything = np.ones(len(scenes.scores), bool), np.ones(len(scenes.object_classes), bool)
    part = tuple(rng.random(len(mask)) < 0.6 for mask in everything)
    precisions = Precisions(scenes, Pairs.find(scenes, 0.5), max_dets)
    for detections, objects in (everything, part):
        found = precisions.table(detections, objects)
        expected = pycocotools_table(scenes, max_dets, detections, objects)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        assert expected.size == 0 or 0.01 < expected.mean() < 0.99


def plain_crowding(scenes: Scenes) -> np.ndarray:
    """Each object's largest IoU with another of its image and class."""
    boxes, groups = scenes.object_boxes.copy(), scenes.object_groups
    boxes[:, 2:] += boxes[:, :2]
    ious = box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()
    ious[(groups[:, None] != groups) | np.eye(len(groups), dtype=bool)] = 0
    return ious.max(axis=1, initial=0)


@pytest.mark.parametrize(("seed", "iou_thresh"), [(0, 0.5), (1, 0.4), (2, 0.7)])
def test_aps_of_parts_are_pycocotools(seed: int, iou_thresh: float) -> None:
    """AP by crowding, before and after NMS, by the definition and pycocotools."""
    scenes = random_scenes(seed, 25, 25)
    report, _ = measure(scenes, "set", None, iou_thresh=iou_thresh)
    survives = nms_survivors(scenes, 0.6)
    assert 0.2 < survives.mean() < 0.9
    overlap = plain_crowding(scenes)
    bins = (overlap > 0).astype(int) + (overlap >= 0.3) + (overlap > 0.5)
    first, second, values = overlapping_pairs(
        (scenes.groups, scenes.boxes), (scenes.object_groups, scenes.object_boxes)
    )
    ious = np.zeros((len(scenes.scores), len(bins)))
    ious[first, second] = values
    parts = {"": (survives | True, bins >= 0)}
    for index, name in enumerate(CROWDING_BINS):
        inside = bins == index
        assert inside.any()
        here = ious[:, inside].max(axis=1)
        there = ious[:, ~inside].max(axis=1)
        parts[f"-{name}"] = ((there < iou_thresh) | (here >= there), inside)
    for name, (detections, objects) in parts.items():
        before = mean_ap(pycocotools_table(scenes, 100, detections, objects))
        after = mean_ap(pycocotools_table(scenes, 100, detections & survives, objects))
        assert report["results"][f"AP{name}"] == pytest.approx(before, abs=1e-9)
        assert report["results"][f"AP_after_NMS{name}"] == pytest.approx(after, abs=1e-9)


def test_overlaps_do_not_depend_on_the_size_of_pieces(monkeypatch) -> None:
    scenes = random_scenes(3, 9, 8)
    given = ((scenes.groups, scenes.boxes), (scenes.object_groups, scenes.object_boxes), 0.3)
    expected = overlapping_pairs(*given)
    monkeypatch.setattr("onenet.evaluation.scenes._MOST_PAIRS", 5)
    for found, values in zip(overlapping_pairs(*given), expected, strict=True):
        np.testing.assert_array_equal(found, values)
    assert len(expected[0]) > 50


@pytest.mark.parametrize("seed", range(3))
def test_nms_is_that_of_each_image_and_class(seed: int) -> None:
    scenes = random_scenes(seed, 15, 9)
    corners = torch.from_numpy(scenes.boxes.copy())
    corners[:, 2:] += corners[:, :2]
    expected = np.zeros(len(scenes.scores), dtype=bool)
    for group in set(scenes.groups.tolist()):
        (members,) = np.nonzero(scenes.groups == group)
        expected[members[nms(corners[members], torch.from_numpy(scenes.scores[members]), 0.5)]] = 1
    np.testing.assert_array_equal(nms_survivors(scenes, 0.5), expected)


def test_thresholds_are_of_the_claims() -> None:
    box = [0.0, 0, 10, 10]
    scenes = Scenes(
        1,
        np.zeros(3, int),
        np.array([box, box, [50, 50, 10, 10]]),
        np.array([0.9, 0.8, 0.3]),
        np.array([0, 0, 1]),
        np.zeros(2, int),
        np.array([box, [50, 50, 10, 10]]),
        np.array([0, 1]),
        np.array([False, False]),
    )
    report, thresholds = measure(scenes, "set", ["a", "b"])
    assert report["results"]["duplicates@0.5"] == 1
    assert [entry["f1"] for entry in thresholds["classes"]] == [1, 1]
    assert thresholds["classes"][0]["threshold"] == pytest.approx(0.85)
