"""Pictures: what is drawn where, sizes and tiling."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from onenet.evaluation.inspection import Assignment, Move, Sample
from onenet.evaluation.inspection_pictures import draw_assignment, draw_moves
from onenet.utils.visualizer import draw_detections, enlarged_height, tile


def test_detections(make_gt) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    gt = make_gt(3, (64, 96), 10)
    names = [str(i) for i in range(10)]
    drawn = draw_detections(image, gt, names, height=128)
    assert drawn.shape == (128, 192, 3) and drawn.dtype == np.uint8 and drawn.any()
    predicted = Instances(
        (64, 96),
        pred_boxes=Boxes([[8.0, 8, 40, 40]]),
        pred_classes=torch.tensor([3]),
        scores=torch.tensor([0.5]),
    )
    box = draw_detections(image, predicted, names, height=64)
    assert box[24, 8].any() and not box[4, 60].any()  # its left side, and nothing elsewhere


def sample(index: int, x: float, y: float, stride: int = 8) -> Sample:
    return Sample(index, int(stride > 8), stride, (x, y), {"cost": 0.0}, 0.0, 0.5, 0.5)


def assignment(index: int, positive: Sample, runner_up: Sample | None) -> Assignment:
    box = (10.0, 10.0, 50.0, 50.0)
    return Assignment(index, 0, box, positive, (0, 0), (0, 0), 0, 0, runner_up, None)


def saturation(picture: np.ndarray, x: int, y: int) -> int:
    """0 for black, white and grey."""
    return int(np.ptp(picture[y, x].astype(int)))


BLACK = np.zeros((64, 96, 3), np.uint8)


def test_assignment_shows_dot_line_and_ring() -> None:
    drawn = draw_assignment([assignment(0, sample(0, 40, 44), sample(1, 20, 40))], BLACK, 256)
    assert drawn.shape == (256, 384, 3) and drawn.dtype == np.uint8
    color = drawn[4 * 44, 4 * 40]
    assert saturation(drawn, 4 * 40, 4 * 44) > 100  # the dot, filled
    assert (drawn[4 * 37, 4 * 35] == color).all()  # half-way to the centre of the box, 30, 30
    assert drawn[4 * 40, 4 * 20].max() < 60  # the ring, hollow
    assert (np.ptp(drawn[4 * 40 - 6 : 4 * 40 + 6, 4 * 20].astype(int), axis=1) > 50).any()
    alone = draw_assignment([assignment(0, sample(0, 40, 44), None)], BLACK, 256)
    assert not alone[4 * 40 - 6 : 4 * 40 + 6, 4 * 20 - 6 : 4 * 20 + 6].any()
    assert not draw_assignment([], BLACK, 64).any()


def test_labels_are_the_callers_or_the_stride() -> None:
    found = [assignment(0, sample(0, 40, 44), None)]
    by_default = draw_assignment(found, BLACK)
    assert (draw_assignment(found, BLACK, labels=["stride 8"]) == by_default).all()
    assert (draw_assignment(found, BLACK, labels=["other"]) != by_default).any()
    move = Move(
        0, (10.0, 10.0, 50.0, 50.0), sample(0, 20, 20), sample(5, 24, 24, 16), True, 1, 5, 1
    )
    by_default = draw_moves([move], BLACK)
    assert (draw_moves([move], BLACK, labels=["stride 8 to 16"]) == by_default).all()


def test_moves_show_an_arrow_or_a_dot() -> None:
    box = (10.0, 10.0, 50.0, 50.0)
    old, new = sample(0, 20, 20), sample(5, 40, 40)
    drawn = draw_moves([Move(0, box, old, new, True, 0, 28.3, 3.5)], BLACK, 256)
    assert drawn.shape == (256, 384, 3)
    for x, y in ((30, 30), (39, 39)):  # on its way, and behind its tip
        assert saturation(drawn, 4 * x, 4 * y) > 50
    assert not drawn[4 * 40 + 4, 4 * 40 + 4].any()  # before its tip: no dot
    still = draw_moves([Move(0, box, new, new, False, 0, 0, 0)], BLACK, 256)
    assert saturation(still, 4 * 40, 4 * 40) > 100 and not still[4 * 30, 4 * 30].any()
    assert not draw_moves([], BLACK, 64).any()


def test_marks_lie_over_the_labels() -> None:
    """A dot right in the label of the box."""
    drawn = draw_assignment([assignment(0, sample(0, 13, 12), None)], BLACK, 256, labels=["mmm"])
    dot = drawn[4 * 12 - 2 : 4 * 12 + 3, 4 * 13 - 2 : 4 * 13 + 3].astype(int)
    assert (np.ptp(dot, axis=2) > 100).all()


def test_pictures_of_swapped_channels() -> None:
    """What ``convert_image_to_rgb`` makes of BGR images."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert (draw_assignment([], image[..., ::-1]) == draw_assignment([], image)[..., ::-1]).all()


def test_tile_joins_rows_of_different_length() -> None:
    black = np.zeros((10, 20, 3), np.uint8)
    picture = tile([[black, black], [black]], gap=2)
    assert picture.shape == (2 * 12 + 2, 2 * 22 + 2, 3)
    assert (picture[:2] == 255).all() and (picture[14:, 24:] == 255).all()


def test_small_images_are_enlarged_but_no_panorama() -> None:
    assert enlarged_height(np.zeros((100, 50, 3)), 384) == 384
    assert enlarged_height(np.zeros((500, 50, 3)), 384) == 500
    assert enlarged_height(np.zeros((20, 12000, 3)), 384) == 20
