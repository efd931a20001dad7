"""How far two results are apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from onenet.export import ExportedDetector, compare_detections
from onenet.export.parity import pad_batch

TOLERANCE = 1e-4


def detections(rows: list[tuple[float, int, list[float]]]) -> Instances:
    scores, classes, boxes = zip(*rows, strict=True)
    return Instances(
        (80, 100),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes),
        pred_boxes=Boxes(torch.tensor(boxes)),
    )


ROWS = [
    (0.9, 0, [0.0, 0.0, 10.0, 10.0]),
    (0.8, 1, [50.0, 20.0, 70.0, 40.0]),
    (0.1, 1, [30.0, 30.0, 60.0, 60.0]),
]


def changed(index: int, **change) -> list:
    rows = list(ROWS)
    score, label, box = rows[index]
    rows[index] = (
        change.get("score", score), change.get("label", label), change.get("box", box)
    )  # fmt: skip
    return rows


def test_equal_results_do_not_differ() -> None:
    difference = compare_detections(detections(ROWS), detections(ROWS), TOLERANCE)
    assert (difference.box, difference.score, difference.unmatched) == (0, 0, 0)
    assert difference.compared == 2  # the last may be another's in its place


def test_a_moved_box_counts_by_the_longer_side() -> None:
    other = detections(changed(1, box=[50.0, 20.0, 70.0, 42.0]))
    assert compare_detections(detections(ROWS), other, TOLERANCE).box == pytest.approx(0.02)


def test_a_changed_score_counts_and_has_no_partner() -> None:
    difference = compare_detections(detections(ROWS), detections(changed(0, score=0.95)), TOLERANCE)
    assert difference.score == pytest.approx(0.05) and difference.unmatched == 2


def test_another_class_has_no_partner() -> None:
    other = detections(changed(0, label=1))
    assert compare_detections(detections(ROWS), other, TOLERANCE).unmatched == 2


def test_nearly_equal_scores_may_change_places() -> None:
    ours = [(0.5, 0, [0.0, 0.0, 9.0, 9.0]), (0.49999, 0, [40.0, 40.0, 60.0, 60.0]), ROWS[2]]
    theirs = [ours[1], ours[0], ours[2]]
    difference = compare_detections(detections(ours), detections(theirs), TOLERANCE)
    assert difference.box == 0 and difference.unmatched == 0 and difference.compared == 2


def test_the_last_ranks_may_differ() -> None:
    other = detections(changed(2, box=[0.0, 60.0, 20.0, 80.0], label=0))
    assert compare_detections(detections(ROWS), other, TOLERANCE).unmatched == 0


def test_missing_detections_count() -> None:
    ours = detections(ROWS)
    assert compare_detections(ours, ours[1:], TOLERANCE).unmatched == 1
    assert compare_detections(ours[1:], ours, TOLERANCE).unmatched == 1
    nothing = ours[:0]
    assert compare_detections(ours, nothing, TOLERANCE).unmatched == 2
    assert compare_detections(nothing, nothing, TOLERANCE).compared == 0


def test_no_partner_at_all() -> None:
    theirs = detections([(0.95, 0, ROWS[0][2]), (0.5, 1, ROWS[1][2]), (0.4999, 1, ROWS[2][2])])
    assert compare_detections(detections(ROWS), theirs, TOLERANCE).unmatched == 3


def test_nan_is_no_agreement() -> None:
    assert compare_detections(
        detections(ROWS), detections(changed(1, score=float("nan"))), TOLERANCE
    ).score == float("inf")


def test_padding_goes_to_the_lower_right() -> None:
    images = [torch.full((3, 40, 20), 7, dtype=torch.uint8), torch.zeros(3, 30, 33).byte()]
    batch, sizes = pad_batch(images, 32)
    assert batch.shape == (2, 64, 64, 3) and batch.dtype == np.uint8
    assert sizes.tolist() == [[40, 20], [30, 33]]
    assert batch[0, :40, :20].min() == 7 and batch[0].sum() == 7 * 40 * 20 * 3


def test_the_file_stands_in_for_the_model() -> None:
    def run(images: np.ndarray, sizes: np.ndarray):
        boxes = np.array([[[10, 10, 20, 30], [5, 5, 5, 9]]], dtype=np.float32)
        return boxes, np.array([[0.9, 0.5]], dtype=np.float32), np.array([[3, 1]])

    image = {"image": torch.zeros(3, 40, 50).byte(), "height": 80, "width": 100}
    (result,) = ExportedDetector(run, 32)([image])
    instances = result["instances"]
    assert instances.image_size == (80, 100)  # scaled, and without the box that has no area
    assert instances.pred_boxes.tensor.tolist() == [[20, 20, 40, 60]]
    assert instances.pred_classes.tolist() == [3]
