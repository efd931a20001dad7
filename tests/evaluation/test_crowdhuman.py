"""CrowdHuman's metrics: golden vectors, cases worked by hand, a slow oracle, and the evaluator."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm

from onenet.engine import build_evaluator, load_config
from onenet.engine.evaluators import check_evaluator
from onenet.evaluation import (
    CrowdHumanEvaluator,
    CrowdImage,
    EndToEndEvaluator,
    UncachedCOCOEvaluator,
    crowdhuman_report,
)
from onenet.utils.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.getenv("ONENET_GOLDEN", ROOT / "tests" / "data" / "golden"))
SIZE = 400
METRICS = ("AP50", "mMR", "recall", "JI")
Box = tuple[float, float, float, float]


def corners(boxes: list) -> np.ndarray:
    return np.array(boxes, dtype=float).reshape(-1, 4)


def image(
    objects: list[Box], detections: list[tuple[Box, float]], ignore: list[Box] | None = None
) -> CrowdImage:
    """Boxes are corners."""
    regions = ignore or []
    return CrowdImage(
        boxes=corners([box for box, _ in detections]),
        scores=np.array([score for _, score in detections], dtype=float),
        gt_boxes=corners([*regions, *objects]),
        is_ignore=np.array([True] * len(regions) + [False] * len(objects), dtype=bool),
        height=SIZE,
        width=SIZE,
    )


def measure(*images: CrowdImage) -> dict[str, float]:
    return crowdhuman_report(images)["results"]


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"crowd_{name}.json").read_text())


def from_xywh(boxes: list) -> np.ndarray:
    boxes = corners(boxes)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def of_image(entries: list[dict], record: dict) -> list[dict]:
    return [entry for entry in entries if entry["image_id"] == record["id"]]


def golden_images() -> list[CrowdImage]:
    truth, detections = golden("gt"), golden("detections")
    images = []
    for record in truth["images"]:
        objects, found = of_image(truth["annotations"], record), of_image(detections, record)
        images.append(
            CrowdImage(
                boxes=from_xywh([d["bbox"] for d in found]),
                scores=np.array([d["score"] for d in found]),
                gt_boxes=from_xywh([a["bbox"] for a in objects]),
                is_ignore=np.array([a["iscrowd"] for a in objects], dtype=bool),
                height=record["height"],
                width=record["width"],
            )
        )
    return images


def test_golden_vectors() -> None:
    report, expected = crowdhuman_report(golden_images()), golden("expected")
    close = functools.partial(pytest.approx, abs=1e-6, rel=0)
    assert report["results"] == close({name: expected[name] for name in METRICS})
    assert report["JI_by_score_threshold"] == close(expected["JI_by_score_threshold"])


A, B, C = (0, 0, 10, 10), (100, 0, 110, 10), (200, 0, 210, 10)
FAR = (300, 300, 310, 310)


def test_all_found_and_nothing_else() -> None:
    found = measure(image([A, B], [(A, 0.9), (B, 0.9)]), image([C], [(C, 0.5)]))
    # The area left of the first detection's recall, 1/3, does not count.
    assert found == pytest.approx({"AP50": 200 / 3, "mMR": 0, "recall": 100, "JI": 100})


def test_a_false_positive_between_two_finds() -> None:
    report = crowdhuman_report([image([A, B], [(A, 0.95), (FAR, 0.85), (B, 0.75)])])
    # Recall 1/2, 1/2, 1 at precision 1, 1/2, 2/3: one trapezoid of width 1/2. All nine points are
    # first reached by the false positive, where one of the two is missed.
    expected = {"AP50": 100 * 0.5 * (1 / 2 + 2 / 3) / 2, "mMR": 50, "recall": 100, "JI": 200 / 3}
    assert report["results"] == pytest.approx(expected)
    assert set(report["miss_rate_by_fppi"].values()) == {50.0}
    by_threshold = report["JI_by_score_threshold"]
    assert by_threshold["0.7"] == pytest.approx(200 / 3)
    assert by_threshold["0.8"] == pytest.approx(100 / 3)  # one pair of two detections, two objects
    assert by_threshold["0.9"] == pytest.approx(50)


def test_miss_rates_where_false_positives_reach_each_point() -> None:
    # 4 images, 5 objects: false positives an image 0, 1/4, 1/4, 1/2, 1/2
    ranking = [(A, 0.9), (FAR, 0.8), (B, 0.7), (FAR, 0.6), (C, 0.5)]
    others = [image([A], []), image([A], []), image([], [])]
    report = crowdhuman_report([image([A, B, C], ranking), *others])
    # Up to 0.1778 the first false positive; 0.3162 the second; beyond, the ranking's end.
    miss = [0.8] * 6 + [0.6] + [0.4] * 2
    assert list(report["miss_rate_by_fppi"].values()) == pytest.approx([100 * m for m in miss])
    assert report["results"]["mMR"] == pytest.approx(100 * math.prod(miss) ** (1 / 9))
    assert report["results"]["recall"] == pytest.approx(60)


def test_an_overlap_of_a_half_is_not_enough() -> None:
    half, more = (0, 0, 10, 5), (0, 0, 10, 6)
    assert measure(image([A, B], [(half, 0.9)]))["recall"] == 0
    assert measure(image([A, B], [(more, 0.9)]))["recall"] == 50
    # Of the detection's own area, whatever the region's size
    region = (200, 0, 400, 100)
    left_half, left_third = (190, 0, 210, 10), (195, 0, 210, 10)
    assert measure(image([A], [(left_half, 0.9), (A, 0.8)], [region]))["mMR"] == 100
    assert measure(image([A], [(left_third, 0.9), (A, 0.8)], [region]))["mMR"] == 0


def test_the_largest_iou_that_is_free_is_taken() -> None:
    near, nearer = (2, 0, 12, 10), (1, 0, 11, 10)
    # The first takes `nearer`, so the second, which has nothing else, is a false positive.
    second = (1.2, 0, 11.2, 10)
    found = measure(image([near, nearer], [((1, 0, 11, 10), 0.9), (second, 0.8)]))
    assert found["recall"] == 100  # `near` is free for it
    found = measure(image([nearer], [((1, 0, 11, 10), 0.9), (second, 0.8)]))
    assert found["mMR"] == 0 and found["JI"] == pytest.approx(100)  # at 0.8 the second is dropped


def test_ignore_regions_count_neither_way() -> None:
    region, inside = (0, 0, 100, 100), (20, 20, 40, 40)
    # On the region alone: nothing. On an object inside it: found. Beside that, its duplicate:
    # nothing.
    detections = [((50, 50, 60, 60), 0.99), (inside, 0.98), (inside, 0.97), (B, 0.96)]
    report = crowdhuman_report([image([inside, B], detections, [region])])
    assert report["results"] == pytest.approx({"AP50": 50, "mMR": 0, "recall": 100, "JI": 100})
    assert (report["num_objects"], report["num_ignore_regions"]) == (2, 1)
    # An object on a region that is missed: so it is for mMR and recall, but not for JI.
    found = measure(image([inside, B], [(B, 0.96)], [region]))
    assert (found["recall"], found["JI"]) == (50, pytest.approx(100))


def test_boxes_are_cut_to_the_image() -> None:
    leaves, cut = (-10, -10, 10, 10), (0, 0, 10, 10)
    assert measure(image([leaves], [(cut, 0.9)]))["recall"] == 100
    leaves, cut = (SIZE - 10, SIZE - 10, SIZE + 10, SIZE + 10), (SIZE - 10, SIZE - 10, SIZE, SIZE)
    assert measure(image([cut], [(leaves, 0.9)]))["recall"] == 100
    # What lies wholly beyond the right edge keeps a pixel there, as in the public evaluators.
    beyond, edge = (SIZE + 5, 0, SIZE + 9, 10), (SIZE - 1, 0, SIZE, 10)
    assert measure(image([beyond], [(edge, 0.9)]))["recall"] == 100


def test_jaccard_pairs_by_total_iou_not_by_number() -> None:
    """Boxes of width 100 in a row, 33 apart: IoU 67/133 with the next ones."""

    def at(x: float) -> Box:
        return x, 0, x + 100, 10

    objects = [at(100), at(133), at(166)]
    detections = [(at(67), 0.95), (at(100), 0.95), (at(133), 0.95)]
    # Two pairs of IoU 1 outweigh three of 67/133.
    assert measure(image(objects, detections))["JI"] == pytest.approx(100 * 2 / (3 + 3 - 2))


def test_no_detections() -> None:
    found = measure(image([A], []), image([], []))
    assert found == {"AP50": 0, "mMR": 100, "recall": 0, "JI": 0}
    # Those on ignore regions are none.
    found = measure(image([A], [(FAR, 0.9)], [FAR]))
    assert found == {"AP50": 0, "mMR": 100, "recall": 0, "JI": 0}


@pytest.mark.parametrize("images", [[], [image([], [(A, 0.9)])], [image([], [], [FAR])]])
def test_no_objects(images: list[CrowdImage]) -> None:
    report = crowdhuman_report(images)
    assert all(math.isnan(value) for value in report["results"].values())
    assert all(math.isnan(value) for value in report["JI_by_score_threshold"].values())


def test_images_without_anything_to_count_do_not_dilute_jaccard() -> None:
    nothing = image([], [(FAR, 0.9)], [FAR])  # n = m = 0
    assert measure(image([A], [(A, 0.95)]), nothing)["JI"] == pytest.approx(100)
    assert measure(image([A], [(A, 0.95)]), image([], [(FAR, 0.95)]))["JI"] == pytest.approx(50)


# The oracle: the definitions, one detection and one pair at a time, by plain Python.


def oracle_cut(box: np.ndarray) -> list[float]:
    most = (SIZE - 1, SIZE - 1, SIZE, SIZE)
    return [max(0.0, min(value, limit)) for value, limit in zip(box, most, strict=True)]


def oracle_overlap(a: list[float], b: list[float], of_first: bool = False) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / ((areas[0] if of_first else sum(areas) - shared) + 1e-6)


def oracle_parts(img: CrowdImage) -> tuple[list, list, list]:
    """Detections as (score, box) by falling score, objects, ignore regions."""
    boxes = [oracle_cut(box) for box in img.boxes]
    ranked = sorted(zip(img.scores.tolist(), boxes, strict=True), key=lambda d: -d[0])
    objects = [oracle_cut(b) for b, ign in zip(img.gt_boxes, img.is_ignore, strict=True) if not ign]
    regions = [oracle_cut(b) for b, ign in zip(img.gt_boxes, img.is_ignore, strict=True) if ign]
    return ranked, objects, regions


def oracle_on_region(box: list[float], regions: list) -> bool:
    return any(oracle_overlap(box, region, of_first=True) > 0.5 for region in regions)


def oracle_curve(images: list[CrowdImage]) -> dict[str, float]:
    marks: list[tuple[float, bool]] = []
    total = 0
    for img in images:
        ranked, objects, regions = oracle_parts(img)
        total += len(objects)
        taken: set[int] = set()
        for score, box in ranked:
            best, best_iou = None, 0.5
            for j, other in enumerate(objects):
                if j not in taken and oracle_overlap(box, other) > best_iou:
                    best, best_iou = j, oracle_overlap(box, other)
            if best is not None:
                taken.add(best)
                marks.append((score, True))
            elif not oracle_on_region(box, regions):
                marks.append((score, False))
    marks.sort(key=lambda mark: -mark[0])
    points, hits = [], 0
    for i, (_, hit) in enumerate(marks, start=1):
        hits += hit
        points.append((hits / total, hits / i, (i - hits) / len(images)))
    ap = sum(
        (r1 - r0) * (p0 + p1) / 2
        for (r0, p0, _), (r1, p1, _) in zip(points[:-1], points[1:], strict=True)
    )
    product = 1.0
    for limit in (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0):
        recall = next((r for r, _, fppi in points if fppi >= limit), points[-1][0])
        product *= 1 - recall
    return {"AP50": 100 * ap, "mMR": 100 * product ** (1 / 9), "recall": 100 * points[-1][0]}


def oracle_heaviest(weights: dict[tuple[int, int], float], num_dets: int) -> set[tuple[int, int]]:
    """The heaviest matching by trying every one."""

    def extend(det: int, used: frozenset[int]) -> tuple[float, set[tuple[int, int]]]:
        if det == num_dets:
            return 0.0, set()
        best = extend(det + 1, used)
        for (d, g), weight in weights.items():
            if d == det and g not in used:
                total, pairs = extend(det + 1, used | {g})
                best = max(best, (weight + total, pairs | {(d, g)}), key=lambda item: item[0])
        return best

    return extend(0, frozenset())[1]


def oracle_jaccard(images: list[CrowdImage]) -> float:
    best = 0.0
    for step in range(10):
        ratios = []
        for img in images:
            ranked, objects, regions = oracle_parts(img)
            kept = [box for score, box in ranked if score > 0.1 * step]
            ious = {
                (d, g): oracle_overlap(box, other)
                for d, box in enumerate(kept)
                for g, other in enumerate(objects)
                if oracle_overlap(box, other) > 0.5
            }
            pairs = oracle_heaviest(ious, len(kept))
            dets, gts = {d for d, _ in pairs}, {g for _, g in pairs}
            n = sum(d in dets or not oracle_on_region(box, regions) for d, box in enumerate(kept))
            m = sum(g in gts or not oracle_on_region(b, regions) for g, b in enumerate(objects))
            if n or m:
                ratios.append(len(pairs) / (n + m - len(pairs) + 1e-6))
        best = max(best, 100 * sum(ratios) / len(ratios) if ratios else 0.0)
    return best


def random_images(rng: np.random.Generator, grid: bool) -> list[CrowdImage]:
    """Up to 3 heaps of objects with detections around them, at the image's corner.

    On a grid IoUs are often equal.
    """
    images = []
    for _ in range(rng.integers(1, 4)):
        num_gt, num_dets = rng.integers(0, 6), rng.integers(0, 8)
        shift = rng.integers(-2, 3, (num_gt + num_dets, 4)) * 4.0
        if not grid:
            shift += rng.uniform(-3, 3, shift.shape)
        boxes = np.array([-3.0, 5.0, 27.0, 45.0]) + shift
        is_ignore = rng.random(num_gt) < 0.2
        scores = rng.choice([0.1, 0.3, 0.5, 0.55, 0.7, 0.95], num_dets)
        images.append(
            CrowdImage(boxes[num_gt:], scores, boxes[:num_gt], is_ignore, height=SIZE, width=SIZE)
        )
    return images


def counts_something(images: list[CrowdImage]) -> bool:
    objects = any((~img.is_ignore).any() for img in images)
    return objects and crowdhuman_report(images)["results"]["mMR"] < 100


@pytest.mark.parametrize("grid", [True, False], ids=["ties", "no ties"])
def test_against_the_oracle(grid: bool) -> None:
    compared = 0
    for seed in range(250):
        images = random_images(np.random.default_rng(seed), grid)
        if not counts_something(images):
            continue
        found = measure(*images)
        expected = oracle_curve(images)
        assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-9), seed
        if not grid:  # where IoUs are equal, several matchings may be the heaviest
            assert found["JI"] == pytest.approx(oracle_jaccard(images), abs=1e-9), seed
        compared += 1
    assert compared > 150


# The evaluator


@pytest.fixture
def register(tmp_path: Path):
    """Registers images, given as lists of annotations; ids are 7, 8, ..."""
    names = []

    def make(images: list[list[dict]], classes: tuple[str, ...] = ("person",)) -> str:
        name = f"crowd_{tmp_path.name}_{len(names)}"
        size = {"height": SIZE, "width": SIZE}
        records = [
            {"image_id": 7 + i, "file_name": f"{i}.jpg", **size, "annotations": annotations}
            for i, annotations in enumerate(images)
        ]
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type="crowdhuman")
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def person(box: Box, iscrowd: int = 0, mode: BoxMode = BoxMode.XYXY_ABS) -> dict:
    return {"bbox": list(box), "bbox_mode": mode, "category_id": 0, "iscrowd": iscrowd}


def output(detections: list[tuple[Box, float]]) -> dict:
    return {
        "instances": Instances(
            (SIZE, SIZE),
            pred_boxes=Boxes(torch.tensor([box for box, _ in detections]).reshape(-1, 4)),
            scores=torch.tensor([score for _, score in detections]),
            pred_classes=torch.zeros(len(detections), dtype=torch.int64),
        )
    }


def run(evaluator: CrowdHumanEvaluator, *detections: list[tuple[Box, float]]) -> dict:
    evaluator.reset()
    for i, found in enumerate(detections):
        evaluator.process([{"image_id": 7 + i}], [output(found)])
    return evaluator.evaluate()


def test_evaluator_agrees_with_the_golden_vectors(register: Callable[..., str]) -> None:
    """In float32, as a detector's outputs are."""
    truth, detections = golden("gt"), golden("detections")
    records = truth["images"]
    name = register(
        [
            [
                person(a["bbox"], a["iscrowd"], BoxMode.XYWH_ABS)
                for a in of_image(truth["annotations"], record)
            ]
            for record in records
        ]
    )
    for registered, record in zip(DatasetCatalog.get(name), records, strict=True):
        registered.update(height=record["height"], width=record["width"])
    outputs = []
    for record in records:
        found = of_image(detections, record)
        boxes = from_xywh([d["bbox"] for d in found]).tolist()
        outputs.append(list(zip(boxes, (d["score"] for d in found), strict=True)))
    results = run(CrowdHumanEvaluator(dataset_name=name), *outputs)["crowdhuman"]
    expected = golden("expected")
    assert results == pytest.approx({key: expected[key] for key in METRICS}, abs=1e-6, rel=0)


def test_evaluator_writes_and_logs(register, tmp_path: Path, caplog) -> None:
    # Both forms of boxes, an ignore region, and an image without outputs
    name = register(
        [[person(A), person((100, 0, 10, 10), 0, BoxMode.XYWH_ABS), person(FAR, 1)], [person(C)]]
    )
    evaluator = CrowdHumanEvaluator(dataset_name=name, output_dir=str(tmp_path / "new"))
    with caplog.at_level("INFO", logger="onenet"):
        results = run(evaluator, [(A, 0.9), (FAR, 0.85), (B, 0.7)])["crowdhuman"]
    expected = {"AP50": 100 / 3, "mMR": 100 / 3, "recall": 200 / 3, "JI": 50}
    assert results == pytest.approx(expected)
    assert all(type(value) is float for value in results.values())
    report = json.loads((tmp_path / "new" / "crowdhuman.json").read_text())
    assert report["results"] == results and report["dataset"] == name
    assert (report["num_images"], report["num_objects"]) == (2, 3)
    assert report["num_ignore_regions"] == 1
    assert f"{name} (2 images, 3 objects)" in caplog.text and "mMR" in caplog.text
    evaluator.reset()
    assert evaluator.evaluate()["crowdhuman"]["recall"] == 0  # all is forgotten


def test_json_has_null_for_nan(register, tmp_path: Path) -> None:
    evaluator = CrowdHumanEvaluator(dataset_name=register([[]]), output_dir=str(tmp_path))
    assert math.isnan(run(evaluator, [(A, 0.9)])["crowdhuman"]["AP50"])
    text = (tmp_path / "crowdhuman.json").read_text()
    report = json.loads(text, parse_constant=pytest.fail)
    assert set(report["results"].values()) == {None}


def test_workers_outputs_are_gathered(register, monkeypatch) -> None:
    name = register([[person(A)], [person(A)]])
    other = CrowdHumanEvaluator(dataset_name=name)
    other.process([{"image_id": 8}], [output([(A, 0.9)])])
    monkeypatch.setattr(comm, "gather", lambda data, dst: [data, other._predictions])
    evaluator = CrowdHumanEvaluator(dataset_name=name)
    assert run(evaluator, [(A, 0.9)])["crowdhuman"]["recall"] == 100
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert run(evaluator, [(A, 0.9)]) == {}


def test_evaluator_is_chosen_by_the_datasets_type(register, tmp_path: Path) -> None:
    name = register([[person(A)]])
    cfg = load_config(
        str(ROOT / "configs" / "crowdhuman" / "onenet_fcos_R50_FPN.yaml"),
        ["DATASETS.TEST", f"('{name}',)", "OUTPUT_DIR", str(tmp_path)],
    )
    assert kinds_of(cfg, name) == [UncachedCOCOEvaluator, CrowdHumanEvaluator, EndToEndEvaluator]
    all_of_them = build_evaluator(cfg, name)
    all_of_them.reset()
    all_of_them.process([{"image_id": 7}], [output([(A, 0.9)])])
    assert set(all_of_them.evaluate()) == {"bbox", "crowdhuman", "end_to_end"}
    assert (tmp_path / "inference" / "crowdhuman.json").is_file()

    cfg.defrost()
    cfg.TEST.END_TO_END.ENABLED = False
    assert kinds_of(cfg, name) == [UncachedCOCOEvaluator, CrowdHumanEvaluator]
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(thing_classes=["person"], evaluator_type="coco")
    assert kinds_of(cfg, name) == [UncachedCOCOEvaluator]


def kinds_of(cfg: CfgNode, name: str) -> list[type]:
    return [type(evaluator) for evaluator in build_evaluator(cfg, name)._evaluators]


def test_several_classes_are_refused_at_the_start(register) -> None:
    name = register([[person(A)]], ("person", "dog"))
    with pytest.raises(DataError, match=rf"'{name}' has 2 classes.*evaluator_type 'coco'"):
        check_evaluator(name)


def crowd(rng: np.random.Generator, num_objects: int, num_dets: int) -> CrowdImage:
    """An image of people that overlap, with a detection or more for most, and false ones."""
    height, width = 800, 1200
    tall = rng.uniform(60, 300, num_objects)
    centers = rng.uniform((0, 0), (width, height), (num_objects, 2))
    half = np.stack([tall * rng.uniform(0.15, 0.25, num_objects), tall / 2], axis=1)
    objects = np.concatenate([centers - half, centers + half], axis=1)
    source = rng.integers(0, num_objects, num_dets)
    scale = np.tile(half[source], 2)
    noise = rng.normal(0, rng.uniform(0.05, 0.5, (num_dets, 1)), (num_dets, 4))
    return CrowdImage(
        boxes=(objects[source] + noise * scale).astype(np.float32),
        scores=rng.beta(1, 2, num_dets).astype(np.float32),
        gt_boxes=objects,
        is_ignore=rng.random(num_objects) < 0.1,
        height=height,
        width=width,
    )


@pytest.mark.slow
@pytest.mark.parametrize("num_dets", [150, 500])
def test_crowdhumans_size_takes_seconds(num_dets: int, register) -> None:
    """The times in docs/crowdhuman.md are this test's output (``-s`` shows it)."""
    rng = np.random.default_rng(0)
    images = [crowd(rng, 100, num_dets) for _ in range(4370)]
    name = register(
        [
            [person(*entry) for entry in zip(img.gt_boxes, img.is_ignore, strict=True)]
            for img in images
        ]
    )
    for record, img in zip(DatasetCatalog.get(name), images, strict=True):
        record.update(height=img.height, width=img.width)
    outputs = [
        Instances(
            (img.height, img.width),
            pred_boxes=Boxes(torch.from_numpy(img.boxes)),
            scores=torch.from_numpy(img.scores),
        )
        for img in images
    ]
    evaluator = CrowdHumanEvaluator(dataset_name=name)
    start = time.perf_counter()
    for i, instances in enumerate(outputs):
        evaluator.process([{"image_id": 7 + i}], [{"instances": instances}])
    results = evaluator.evaluate()["crowdhuman"]
    seconds = time.perf_counter() - start
    print(f"\n4,370 images, 100 people, {num_dets} detections each: {seconds:.1f} s; {results}")
    assert 0 < results["JI"] < 100
    assert seconds < 60
