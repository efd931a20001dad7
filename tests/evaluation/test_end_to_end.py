"""The end-to-end-ness evaluator: hand-worked cases, planted duplicates, COCO's own numbers."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from onenet.evaluation import EndToEndEvaluator, Status, match_detections
from onenet.evaluation.measure import crowding_bins
from onenet.evaluation.scenes import Scenes, crowding, nms_survivors

SIZE = 400
# An object (box, class) or (box, class, iscrowd), a detection (box, class, score); corners.
Object = tuple
Detection = tuple
Measure = Callable[..., dict[str, Any]]


def instances(detections: list[Detection]) -> Instances:
    return Instances(
        (SIZE, SIZE),
        pred_boxes=Boxes(torch.tensor([d[0] for d in detections]).float().reshape(-1, 4)),
        pred_classes=torch.tensor([d[1] for d in detections], dtype=torch.int64),
        scores=torch.tensor([d[2] for d in detections], dtype=torch.float32),
    )


@pytest.fixture
def register(tmp_path: Path):
    """Registers images, given as lists of objects, as a dataset; its ids are 7, 8, ..."""
    names = []

    def make(images: list[list[Object]], num_classes: int = 3) -> str:
        name = f"hand_made_{tmp_path.name}_{len(names)}"
        dicts = [
            {
                "image_id": 7 + i,
                "file_name": f"{i}.png",
                "height": SIZE,
                "width": SIZE,
                "annotations": [
                    {
                        "bbox": list(box),
                        "bbox_mode": BoxMode.XYXY_ABS,
                        "category_id": label,
                        "iscrowd": crowd[0] if crowd else 0,
                    }
                    for box, label, *crowd in objects
                ],
            }
            for i, objects in enumerate(images)
        ]
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(
            thing_classes=[str(i) for i in range(num_classes)], evaluator_type="coco"
        )
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(evaluator, detections: list[list[Detection]]) -> dict:
    evaluator.reset()
    for i, image in enumerate(detections):
        evaluator.process([{"image_id": 7 + i}], [{"instances": instances(image)}])
    return evaluator.evaluate()


@pytest.fixture
def measure(register, tmp_path: Path) -> Measure:
    """``measure(objects by image, detections by image, **arguments)``: end_to_end.json's content.

    It has checked that ``evaluate`` returns its "results", as floats.
    """

    def call(objects: list[list[Object]], detections: list[list[Detection]], **kwargs: Any):
        evaluator = EndToEndEvaluator(
            dataset_name=register(objects), output_dir=str(tmp_path), **kwargs
        )
        results = run(evaluator, detections)["end_to_end"]
        assert all(type(value) is float for value in results.values())
        report = json.loads((tmp_path / "end_to_end.json").read_text(), parse_constant=pytest.fail)
        assert report["results"] == {k: None if math.isnan(v) else v for k, v in results.items()}
        assert not list(tmp_path.glob("*.tmp"))
        return report

    return call


def test_claims_duplicates_and_score_gap_by_hand(measure: Measure) -> None:
    a, b = (0, 0, 10, 10), (100, 0, 110, 10)
    detections = [
        (a, 0, 0.9),  # claims a
        ((0, 0, 10, 8), 0, 0.6),  # IoU 0.8 with a, which is claimed: duplicate
        ((0, 0, 10, 5), 0, 0.2),  # IoU 0.5, still on it: duplicate
        ((0, 0, 10, 4), 0, 0.8),  # IoU 0.4: neither
        (a, 1, 0.95),  # another class: neither
        (b, 0, 0.7),  # claims b
    ]
    report = measure([[(a, 0), (b, 0)], []], [detections, [(a, 0, 0.99)]])
    assert (report["num_images"], report["num_objects"]) == (2, 2)
    results = report["results"]
    assert results["recall"] == 100  # both objects are claimed
    # Duplicates of 0.6 and 0.2, in two images
    assert results["duplicates@0.1"] == 2 / 2
    assert results["duplicates@0.3"] == 1 / 2
    assert results["duplicates@0.5"] == 1 / 2
    # a: 0.9 - 0.6; b: 0.7 - 0
    assert results["score_gap"] == pytest.approx((0.3 + 0.7) / 2)
    curves = report["curves"]
    assert curves["score"] == pytest.approx([0.05 * i for i in range(1, 20)])
    # 0.6 and 0.2 count at the thresholds 0.6 and 0.2 too; claims are 0.9 and 0.7
    assert curves["duplicates_per_image"] == [1.0] * 4 + [0.5] * 8 + [0.0] * 7
    assert curves["claims_per_image"] == [1.0] * 14 + [0.5] * 4 + [0.0]


def test_status_and_objects_by_hand() -> None:
    gt = [(0, 0, 10, 10), (0, 4, 10, 14)]  # IoU with each other 6/14
    boxes = [
        (0, 1, 10, 11),  # IoU 9/11 with 0, 7/13 with 1; the lowest score: duplicate of 0
        (0, 2, 10, 12),  # 8/12 with both; second: 0 is gone, claims 1
        (0, 0, 10, 10),  # best score: claims 0
        (50, 50, 60, 60),  # nothing there
    ]
    status, objects = match_detections(boxes, [0.1, 0.5, 0.9, 0.8], [0] * 4, gt, [0, 0])
    assert status.tolist() == [Status.DUPLICATE, Status.CLAIM, Status.CLAIM, Status.NEITHER]
    assert objects.tolist() == [0, 1, 0, -1]
    # Equal scores: as given
    status, _ = match_detections(torch.tensor([gt[0], gt[0]]), [0.5, 0.5], [0, 0], gt[:1], [0])
    assert status.tolist() == [Status.CLAIM, Status.DUPLICATE]
    # A stricter IoU
    status, objects = match_detections(boxes, [0.1, 0.5, 0.9, 0.8], [0] * 4, gt, [0, 0], 0.7)
    assert status.tolist() == [Status.DUPLICATE, Status.NEITHER, Status.CLAIM, Status.NEITHER]


def test_nms_gap_of_one_duplicate(measure: Measure) -> None:
    a, b = (0, 0, 10, 10), (100, 0, 110, 10)
    detections = [(a, 0, 0.9), (a, 0, 0.8), (b, 0, 0.7)]
    results = measure([[(a, 0), (b, 0)]], [detections])["results"]
    # True, false, true: precision 1 up to recall 0.5 (51 of COCO's 101 points), then 2/3.
    ap = 100 * (51 + 50 * 2 / 3) / 101
    for suffix in ("", "50"):  # the boxes are exact, so that all IoU thresholds agree
        assert results[f"AP{suffix}"] == pytest.approx(ap)
        assert results[f"AP{suffix}_after_NMS"] == pytest.approx(100)
        assert results[f"NMS_gap{suffix}"] == pytest.approx(100 - ap)
    # A NMS that forgives everything leaves it
    results = measure([[(a, 0), (b, 0)]], [detections], nms_thresh=1.0)["results"]
    assert results["NMS_gap"] == 0.0


def test_precision_curves(measure: Measure) -> None:
    a, b = (0, 0, 10, 10), (100, 0, 110, 10)
    detections = [(a, 0, 0.9), (a, 0, 0.8), (b, 0, 0.7)]
    # Class 1 has an object and no detection: precision 0; class 2 has no object and is left out.
    curves = measure([[(a, 0), (b, 0), (b, 1)]], [[*detections, (a, 2, 0.9)]])["curves"]
    assert curves["recall"] == pytest.approx(np.linspace(0, 1, 101))
    assert curves["precision"] == pytest.approx([0.5] * 51 + [1 / 3] * 50)
    assert curves["precision_after_nms"] == pytest.approx([0.5] * 101)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [(0, 0), (1e-6, 1), (0.29, 1), (0.3, 2), (0.31, 2), (0.5, 2), (0.500001, 3), (1, 3)],
)
def test_bins_of_crowding(overlap: float, expected: int) -> None:
    assert crowding_bins(np.array([overlap])).tolist() == [expected]


def test_crowding_of_boxes() -> None:
    def crowding_of(boxes: list, groups: list) -> list[float]:
        return crowding(np.array(groups), np.array([xywh(box) for box in boxes], float)).tolist()

    def pair(height: float) -> list[int]:
        """The bins of a box and its upper part: IoU height/10."""
        boxes = [(0, 0, 10, 10), (0, 0, 10, height)]
        return crowding_bins(np.array(crowding_of(boxes, [0, 0]))).tolist()

    assert pair(2.9) == [1, 1]
    assert pair(3) == [2, 2]  # exactly 0.3
    assert pair(5) == [2, 2]  # exactly 0.5
    assert pair(5.1) == [3, 3]
    # Touching, another class, alone: none. The largest counts: 0.2 and 0.6 with the first.
    boxes = [(0, 0, 10, 10), (10, 0, 20, 10), (0, 0, 10, 10), (50, 0, 60, 10)]
    assert crowding_of(boxes, [0, 0, 1, 0]) == [0, 0, 0, 0]
    boxes = [(0, 0, 10, 10), (0, 0, 10, 2), (0, 4, 10, 10)]
    assert crowding_of(boxes, [0, 0, 0]) == [0.6, 0.2, 0.6]
    # Two that coincide and have no area: 0/0, which is none
    assert crowding_of([(5, 5, 5, 9), (5, 5, 5, 9)], [0, 0]) == [0, 0]


def test_metrics_by_crowding(measure: Measure) -> None:
    lone = (0, 0, 10, 10)
    p, q = (100, 0, 110, 10), (100, 2, 110, 12)  # IoU 8/12: over 0.5
    detections = [
        (lone, 0, 0.9),
        ((0, 0, 10, 8), 0, 0.4),  # duplicate of the lone one, IoU 0.8
        (p, 0, 0.8),
        (q, 0, 0.7),
        (q, 0, 0.6),  # duplicate of q, though it also lies on p
    ]
    report = measure([[(lone, 0), (p, 0), (q, 0)]], [detections])
    bins = {entry["name"]: entry for entry in report["crowding"]}
    assert list(bins) == ["none", "under_0.3", "0.3_to_0.5", "over_0.5"]
    assert [entry["num_objects"] for entry in bins.values()] == [1, 0, 0, 2]

    none, over = bins["none"], bins["over_0.5"]
    assert [none[f"duplicates@{t}"] for t in (0.1, 0.3, 0.5)] == [1, 1, 0]
    assert [over[f"duplicates@{t}"] for t in (0.1, 0.3, 0.5)] == [1, 1, 1]
    assert none["score_gap"] == pytest.approx(0.9 - 0.4)
    assert over["score_gap"] == pytest.approx(((0.8 - 0) + (0.7 - 0.6)) / 2)
    assert none["recall"] == over["recall"] == 100
    # Only the lone one's two detections count, and the first is enough.
    assert none["AP"] == none["AP_after_NMS"] == pytest.approx(100)
    # p and q come before the duplicate. NMS at 0.6 removes q: recall stays at 0.5, 51 points.
    assert over["AP"] == pytest.approx(100)
    assert over["AP_after_NMS"] == pytest.approx(100 * 51 / 101)
    assert over["NMS_gap"] == pytest.approx(100 * 51 / 101 - 100)
    assert bins["under_0.3"] == {
        "name": "under_0.3", "num_objects": 0, "AP": None, "AP_after_NMS": None, "NMS_gap": None,
        "recall": None, "duplicates@0.1": 0, "duplicates@0.3": 0, "duplicates@0.5": 0,
        "score_gap": None,
    }  # fmt: skip
    for name, entry in bins.items():
        for metric in list(entry)[2:]:
            assert report["results"][f"{metric}-{name}"] == entry[metric]
    # What lies on nothing is false in every bin: precision 1/2 at each recall of the lone object.
    # The second touches p, with IoU 0.4, which is not lying on it.
    for stray in ((300, 300, 310, 310), (100, 0, 110, 4)):
        report = measure([[(lone, 0), (p, 0), (q, 0)]], [[*detections, (stray, 0, 0.95)]])
        assert report["results"]["AP-none"] == pytest.approx(50)


def test_a_bin_whose_objects_are_missed_has_ap_0(measure: Measure) -> None:
    lone, p, q = (0, 0, 10, 10), (100, 0, 110, 10), (100, 2, 110, 12)
    results = measure([[(lone, 0), (p, 0), (q, 0)]], [[(lone, 0, 0.9)]])["results"]
    assert results["AP-over_0.5"] == 0
    assert results["AP-none"] == pytest.approx(100)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 2**31 - 1))
def test_planted_duplicates_are_found(num_objects: int, num_planted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # A grid of lone objects, each found exactly
    gt = np.array([(40 * (i % 4), 40 * (i // 4), 0, 0) for i in range(num_objects)], dtype=float)
    gt[:, 2:] = gt[:, :2] + 20
    gt_classes = rng.integers(0, 3, num_objects)
    on = rng.integers(0, num_objects, num_planted)
    shift = rng.uniform(-2, 2, (num_planted, 1))  # IoU at least 18/22 squared: 0.67
    boxes = np.concatenate([gt, gt[on] + shift])
    found = rng.uniform(0.8, 1, num_objects)
    planted = rng.uniform(0, 0.8, num_planted)
    order = rng.permutation(len(boxes))
    status, objects = match_detections(
        boxes[order],
        np.concatenate([found, planted])[order],
        np.concatenate([gt_classes, gt_classes[on]])[order],
        gt,
        gt_classes,
    )
    expected = np.array([Status.CLAIM] * num_objects + [Status.DUPLICATE] * num_planted)
    assert (status == expected[order]).all()
    assert (objects == np.concatenate([np.arange(num_objects), on])[order]).all()


def test_planted_duplicates_reach_the_results(measure: Measure) -> None:
    objects = [((40 * i, 0, 40 * i + 20, 20), i % 3) for i in range(8)]
    found = [(box, label, 0.9) for box, label in objects]
    planted = [(box, label, 0.07 + 0.1 * i) for i, (box, label) in enumerate(objects)]
    results = measure([objects] * 3, [found + planted, found, found])["results"]
    # Scores 0.07, 0.17, ..., 0.77, in one of three images
    assert [results[f"duplicates@{t}"] for t in (0.1, 0.3, 0.5)] == [7 / 3, 5 / 3, 3 / 3]
    assert results["score_gap"] == pytest.approx((24 * 0.9 - 8 * 0.42) / 24)
    assert results["AP_after_NMS"] == pytest.approx(100)


def naive_iou(a: tuple, b: tuple) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def naive_matching(detections: list[Detection], gt: list[Object]) -> list[tuple[Status, int]]:
    """The definition of ``match_detections``, word for word."""
    result = [(Status.NEITHER, -1)] * len(detections)
    claimed = set()
    for d in sorted(range(len(detections)), key=lambda d: -detections[d][2]):  # sorted is stable
        box, label, _ = detections[d]
        lies_on = {
            g: naive_iou(box, gt[g][0])
            for g in range(len(gt))
            if gt[g][1] == label and naive_iou(box, gt[g][0]) >= 0.5
        }
        free = {g: iou for g, iou in lies_on.items() if g not in claimed}
        if free:
            best = max(free, key=lambda g: (free[g], g))
            result[d] = (Status.CLAIM, best)
            claimed.add(best)
        elif lies_on:
            result[d] = (Status.DUPLICATE, max(lies_on, key=lambda g: (lies_on[g], g)))
    return result


@st.composite
def small_boxes(draw) -> tuple:
    """A small grid, so that boxes often overlap, coincide, and tie; flat ones too."""
    x, y = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    return (x, y, x + draw(st.integers(0, 5)), y + draw(st.integers(0, 5)))


CLASSES = st.integers(0, 1)
GT = st.lists(st.tuples(small_boxes(), CLASSES), max_size=8)
DETECTIONS = st.lists(
    st.tuples(small_boxes(), CLASSES, st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0])), max_size=16
)


@settings(max_examples=300, deadline=None)
@given(DETECTIONS, GT)
def test_matching_equals_the_naive_one(detections: list, gt: list) -> None:
    status, objects = match_detections(
        [d[0] for d in detections],
        [d[2] for d in detections],
        [d[1] for d in detections],
        [g[0] for g in gt],
        [g[1] for g in gt],
    )
    assert list(zip(status, objects, strict=True)) == naive_matching(detections, gt)


def xywh(box: tuple) -> list:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


@settings(max_examples=100, deadline=None)
@given(DETECTIONS, GT)
def test_claims_are_cocos_true_positives(detections: list, gt: list) -> None:
    """Detection by detection, and of the object that COCO says."""
    apis = []
    for entries in (gt, detections):
        api = COCO()
        api.dataset = {
            "images": [{"id": 1}],
            "categories": [{"id": 0}, {"id": 1}],
            "annotations": [
                {"id": i + 1, "image_id": 1, "category_id": e[1], "bbox": xywh(e[0]), "area": 1,
                 "iscrowd": 0, "score": e[-1]}
                for i, e in enumerate(entries)
            ],
        }  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            api.createIndex()
        apis.append(api)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCOeval(*apis, "bbox")
        coco.evaluate()
    expected = {}
    for image in coco.evalImgs:
        if image is not None and image["aRng"] == coco.params.areaRng[0]:
            pairs = zip(image["dtIds"], image["dtMatches"][0], strict=True)
            expected.update({int(d) - 1: int(g) - 1 for d, g in pairs if g > 0})
    status, objects = match_detections(
        [d[0] for d in detections],
        [d[2] for d in detections],
        [d[1] for d in detections],
        [g[0] for g in gt],
        [g[1] for g in gt],
    )
    claims = np.flatnonzero(status == Status.CLAIM)
    assert {int(d): int(objects[d]) for d in claims} == expected


def random_images(rng: np.random.Generator, copies: int = 4) -> tuple[list, list]:
    """Objects, some of them crowd, and detections: good ones, shifted ones, strays, ties."""
    objects, detections = [], []
    for _ in range(12):
        corner = rng.integers(0, 200, (rng.integers(0, 8), 2))
        boxes = np.concatenate([corner, corner + rng.integers(10, 120, corner.shape)], axis=1)
        labels = rng.integers(0, 4, len(boxes))
        crowd = (rng.random(len(boxes)) < 0.15).astype(int)
        objects.append(list(zip(boxes.tolist(), labels.tolist(), crowd.tolist(), strict=True)))
        near = np.repeat(boxes, copies, axis=0) + rng.normal(0, 4, (copies * len(boxes), 4))
        stray = np.array([[10.0, 20, 60, 90]]) + rng.uniform(0, 200, (5, 1))
        labels = np.concatenate([np.repeat(labels, copies), rng.integers(0, 5, 5)])
        near = np.sort(np.concatenate([near, stray]).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        scores = rng.random(len(near)).round(2)
        detections.append(list(zip(near.tolist(), labels.tolist(), scores.tolist(), strict=True)))
    return objects, detections


@pytest.mark.parametrize("max_dets", [100, 11])
@pytest.mark.parametrize("seed", range(3))
def test_ap_equals_detectron2s(register, tmp_path: Path, seed: int, max_dets: int) -> None:
    objects, detections = random_images(
        np.random.default_rng(seed), copies=4 if max_dets == 100 else 9
    )
    name = register(objects, num_classes=5)
    coco = COCOEvaluator(
        name, tasks=("bbox",), output_dir=str(tmp_path), max_dets_per_image=max_dets
    )
    found = run(EndToEndEvaluator(dataset_name=name, max_dets_per_image=max_dets), detections)
    found = found["end_to_end"]
    expected = run(coco, detections)["bbox"]
    assert 5 < expected["AP"] < 95
    assert found["AP"] == pytest.approx(expected["AP"], abs=1e-9)
    assert found["AP50"] == pytest.approx(expected["AP50"], abs=1e-9)

    after = []
    for image in detections:
        part = instances(image)
        keep = batched_nms(part.pred_boxes.tensor, part.scores, part.pred_classes, 0.6)
        after.append([image[i] for i in sorted(keep.tolist())])
    assert sum(map(len, after)) < sum(map(len, detections))
    expected = run(coco, after)["bbox"]
    assert found["AP_after_NMS"] == pytest.approx(expected["AP"], abs=1e-9)
    assert found["AP50_after_NMS"] == pytest.approx(expected["AP50"], abs=1e-9)
    assert found["NMS_gap"] == pytest.approx(found["AP_after_NMS"] - found["AP"])


def test_nms_keeps_images_and_classes_apart_and_minds_no_negative_coordinates() -> None:
    def survivors(images: list, boxes: list, scores: list, classes: list) -> list[bool]:
        found = [np.array(values) for values in (images, boxes, scores, classes)]
        nothing = (np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
        found[1] = found[1].astype(float)
        return nms_survivors(Scenes(3, *found, *nothing), 0.6).tolist()

    # Shifting class 1 by 51 (largest coordinate + 1) would move the second box onto the first
    boxes = [(0, 0, 50, 50), (-51, -51, 50, 50), (1, 0, 50, 50)]
    assert survivors([0, 0], boxes[:2], [0.9, 0.8], [0, 1]) == [True, True]
    box = Boxes(torch.tensor([[0.0, 0, 50, 50], [1, 0, 51, 50]]))
    assert pairwise_iou(box, box)[0, 1].item() > 0.6
    boxes = [boxes[0], boxes[2], boxes[2], boxes[2]]
    scores, classes = [0.8, 0.9, 0.7, 0.6], [0, 0, 1, 0]
    assert survivors([0, 0, 0, 2], boxes, scores, classes) == [False, True, True, True]


def test_crowd_regions_are_no_objects(measure: Measure) -> None:
    region, a = (0, 0, 100, 100), (200, 0, 220, 20)
    detections = [(a, 0, 0.5), (region, 0, 0.9), (region, 0, 0.8)]
    report = measure([[(region, 0, 1), (a, 0)]], [detections])
    assert report["num_objects"] == 1
    # What lies on the region is neither claim nor duplicate, and no false positive for COCO.
    assert report["results"]["duplicates@0.1"] == 0
    assert report["results"]["score_gap"] == pytest.approx(0.5)
    assert report["results"]["AP"] == pytest.approx(100)
    # Nor does it crowd an object that it covers; the bin still has it as crowd.
    report = measure([[(region, 0, 1), (region, 0)]], [[(region, 0, 0.9)]])
    assert [entry["num_objects"] for entry in report["crowding"]] == [1, 0, 0, 0]
    report = measure([[(region, 0, 1), (a, 0)]], [detections])
    assert report["results"]["AP-none"] == pytest.approx(100)


def test_recall_by_crowding(measure: Measure) -> None:
    lone, p, q = (0, 0, 10, 10), (100, 0, 110, 10), (100, 2, 110, 12)
    objects = [(lone, 0), (p, 0), (q, 0)]
    results = measure([objects, objects], [[(lone, 0, 0.01), (q, 0, 0.5)], [(p, 1, 0.9)]])[
        "results"
    ]
    assert results["recall"] == pytest.approx(100 * 2 / 6)
    assert results["recall-none"] == pytest.approx(100 * 1 / 2)
    assert results["recall-over_0.5"] == pytest.approx(100 * 1 / 4)


def test_nothing_detected_nothing_there(measure: Measure) -> None:
    a = (0, 0, 10, 10)
    for objects, detections in (([[(a, 0)]], [[]]), ([[]], [[(a, 0, 0.9)]]), ([[]], [[]])):
        report = measure(objects, detections)
        results = report["results"]
        for metric in ("AP", "AP50_after_NMS", "NMS_gap", "score_gap", "AP-none"):
            assert results[metric] is None
        # With no object to repeat, 0 duplicates would keep any limit.
        assert results["duplicates@0.1"] == (0 if objects[0] else None)
        assert results["recall"] == (0 if objects[0] else None)
        assert report["curves"]["precision"] == [None] * 101
        assert report["curves"]["claims_per_image"] == [0.0] * 19
    # An image that the evaluator has not seen counts as one without detections.
    report = measure([[(a, 0)], [(a, 0)]], [[(a, 0, 0.9)]])
    assert report["num_images"] == 2
    assert report["results"]["AP"] == pytest.approx(100 * 51 / 101)


@pytest.mark.parametrize("broken", [("score", float("nan")), ("box", float("nan"))])
def test_detections_that_are_no_numbers_do_not_count(measure: Measure, broken: tuple) -> None:
    good = ((10, 10, 60, 60), 0, 0.5)
    what, value = broken
    bad = ((10, 10, value, 60), 0, 0.9) if what == "box" else ((10, 10, 60, 60), 0, value)
    objects = [[((10, 10, 60, 60), 0)]]
    found, expected = (measure(objects, [detections]) for detections in ([good, bad], [good]))
    assert found["results"] == expected["results"]
    assert found["curves"] == expected["curves"]


def test_reset_forgets(register) -> None:
    a = (0, 0, 10, 10)
    evaluator = EndToEndEvaluator(dataset_name=register([[(a, 0)]]))
    assert run(evaluator, [[(a, 0, 0.9), (a, 0, 0.8)]])["end_to_end"]["duplicates@0.1"] == 1
    assert run(evaluator, [[(a, 0, 0.9)]])["end_to_end"]["duplicates@0.1"] == 0


def test_workers_outputs_are_gathered(register, monkeypatch) -> None:
    a = (0, 0, 10, 10)
    evaluator = EndToEndEvaluator(dataset_name=register([[(a, 0)], [(a, 0)]]))
    other = EndToEndEvaluator(dataset_name=register([[]]))
    other.process([{"image_id": 8}], [{"instances": instances([(a, 0, 0.9)])}])
    monkeypatch.setattr(comm, "gather", lambda data, dst: [data, other._predictions])
    assert run(evaluator, [[(a, 0, 0.9)]])["end_to_end"]["AP"] == pytest.approx(100)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert run(evaluator, [[(a, 0, 0.9)]]) == {}


def test_the_log_has_a_table(register, caplog, capsys) -> None:
    a = (0, 0, 10, 10)
    name = register([[(a, 0)]])
    with caplog.at_level("INFO", logger="onenet"):
        run(EndToEndEvaluator(dataset_name=name, nms_thresh=0.55), [[(a, 0, 0.9), (a, 0, 0.5)]])
    text = caplog.text
    assert f"{name} (1 images), NMS at IoU 0.55" in text
    assert "duplicates@0.5" in text and "0.3_to_0.5" in text and "| all " in text
    assert capsys.readouterr().out == ""  # pycocotools is silent
