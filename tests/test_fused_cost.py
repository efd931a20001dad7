"""The fused cost equals the sum of the parts, which are computed one by one."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances

from onenet import fused_cost
from onenet.costs import AnchorCost, MatchingCost


def random_boxes(n: int, size: float = 100.0) -> torch.Tensor:
    corner = torch.rand(n, 2) * size
    return torch.cat((corner, corner + 1 + torch.rand(n, 2) * size), dim=1)


def problem(num_samples: int, num_gt: int, num_classes: int):
    gt = Instances(
        (150, 210),
        gt_boxes=Boxes(random_boxes(num_gt)),
        gt_classes=torch.randint(num_classes, (num_gt,)),
    )
    logits = 3 * torch.randn(num_samples, num_classes)
    return logits, random_boxes(num_samples), random_boxes(num_samples), gt


def parts_summed(cost, problem) -> torch.Tensor:
    return sum(cost.parts(*problem).values())


@pytest.mark.parametrize("cost", [MatchingCost(), MatchingCost(0.5, 3.0, 7.0, 0.4, 1.5)])
@pytest.mark.parametrize(
    "shape", [(50, 7, 80), (50, 7, 1), (50, 90, 80), (1, 1, 1), (3, 0, 5), (0, 4, 5)]
)
def test_equals_the_sum_of_the_parts(cost: MatchingCost, shape: tuple[int, int, int]) -> None:
    inputs = problem(*shape)
    fused = cost(*inputs)
    assert fused.shape == shape[:2] and fused.dtype == torch.float32
    assert torch.allclose(fused, parts_summed(cost, inputs), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("elements", [1, 50, 120, 10_000])
def test_chunks_change_nothing(monkeypatch, elements: int) -> None:
    inputs = problem(40, 9, 3)
    whole = MatchingCost()(*inputs)
    monkeypatch.setattr(fused_cost, "CHUNK_ELEMENTS", elements)
    assert torch.equal(MatchingCost()(*inputs), whole)


def test_boxes_that_are_turned_over_or_without_area() -> None:
    logits, boxes, anchors, gt = problem(40, 6, 3)
    boxes[:10] = boxes[:10, [2, 3, 0, 1]]  # right of left
    boxes[10:20, 2:] = boxes[10:20, :2]
    boxes[20:30, 2] = boxes[20:30, 0]
    inputs = logits, boxes, anchors, gt
    expected = parts_summed(MatchingCost(), inputs)
    assert torch.allclose(MatchingCost()(*inputs), expected, atol=2e-5, rtol=1e-5)


def test_what_is_not_finite_stays_so() -> None:
    logits, boxes, anchors, gt = problem(12, 4, 3)
    logits[0], logits[1, 1] = float("nan"), float("nan")
    for row, (side, value) in enumerate(
        [(0, "nan"), (3, "nan"), (0, "-inf"), (2, "inf"), (1, "inf"), (3, "-inf")], start=2
    ):
        boxes[row, side] = float(value)
    boxes[8] = float("inf")
    boxes[9, 2:] = boxes[9, :2]
    gt.gt_boxes.tensor[2] = boxes[9]  # coincident, and without area: 0 / 0
    inputs = logits, boxes, anchors, gt
    finite = parts_summed(MatchingCost(), inputs).isfinite()
    assert torch.equal(MatchingCost()(*inputs).isfinite(), finite)
    assert not finite[2:9].any() and not finite[9, 2] and finite[10:].all()


def test_anchors_in_place_of_boxes() -> None:
    inputs = problem(30, 5, 4)
    expected = parts_summed(AnchorCost(), inputs)
    assert torch.allclose(AnchorCost()(*inputs), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    logits, boxes, anchors, gt = problem(5000, 60, 20)
    expected = parts_summed(MatchingCost(), (logits, boxes, anchors, gt))
    on_gpu = MatchingCost()(logits.cuda(), boxes.cuda(), anchors.cuda(), gt.to("cuda"))
    assert torch.allclose(on_gpu.cpu(), expected, atol=2e-5, rtol=1e-5)
