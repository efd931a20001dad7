"""The fused cost equals the sum of the parts, which are computed one by one."""

from __future__ import annotations

import warnings

import pytest
import torch
from detectron2.structures import Boxes, Instances

from onenet.modeling.costs import AnchorCost, MatchingCost, SpatialPrior
from onenet.modeling.matcher import HungarianMatcher, MinCostMatcher
from onenet.modeling.ops import fused_cost
from onenet.structures import DensePredictions, Targets


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


@pytest.mark.parametrize("num_classes", [3, 80])  # fewer than objects, and more
@pytest.mark.parametrize("elements", [1, 50, 120, 10_000])
def test_chunks_change_nothing(monkeypatch, elements: int, num_classes: int) -> None:
    inputs = problem(40, 9, num_classes)
    whole = MatchingCost()(*inputs)
    monkeypatch.setattr(fused_cost, "CHUNK_ELEMENTS", elements)
    torch.testing.assert_close(MatchingCost()(*inputs), whole)  # a logarithm may round otherwise


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


# Of a score near 1 the formula has the logarithm of 1 - p: the last digit of p decides.
GPU_TOLERANCE = {"atol": 1e-3, "rtol": 1e-4}


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    logits, boxes, anchors, gt = problem(5000, 60, 20)
    expected = parts_summed(MatchingCost(), (logits, boxes, anchors, gt))
    on_gpu = MatchingCost()(logits.cuda(), boxes.cuda(), anchors.cuda(), gt.to("cuda"))
    assert torch.allclose(on_gpu.cpu(), expected, **GPU_TOLERANCE)


GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def batch(num_classes: int, device: str = "cpu", num_samples: int = 40):
    sizes = [(150, 210), (90, 80), (200, 70)]
    logits = 3 * torch.randn(3, num_samples, num_classes)
    boxes = random_boxes(3 * num_samples).view(3, num_samples, 4)
    gts = [
        Instances(
            size, gt_boxes=Boxes(random_boxes(n)), gt_classes=torch.randint(num_classes, (n,))
        ).to(device)
        for size, n in zip(sizes, (3, 0, 9), strict=True)
    ]
    parts = (x.to(device) for x in (logits, boxes, random_boxes(num_samples)))
    return DensePredictions.of(*parts, (num_samples,)), gts, Targets.of(gts, torch.device(device))


@pytest.mark.parametrize(
    "cost", [MatchingCost(0.5, 3.0, 7.0, 0.4, 1.5), MatchingCost(0.5, 3.0, 7.0, 0.4), AnchorCost()]
)
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("num_classes", [1, 80])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_batch_equals_its_images(cost, prior: bool, num_classes: int, device: str) -> None:
    cost = SpatialPrior(cost) if prior else cost
    predictions, gts, targets = batch(num_classes, device)
    logits, boxes = predictions.pred_logits, predictions.pred_boxes
    anchors = predictions.anchors
    alone = torch.cat([cost(logits[i], boxes[i], anchors, gt).t() for i, gt in enumerate(gts)])
    for rows in (slice(0, 12), slice(2, 7)):
        together = cost.of_batch(predictions, targets, rows)
        torch.testing.assert_close(together, alone[rows], **GPU_TOLERANCE)


def compare_kernel(device: str) -> None:
    """The kernel against the steps, with predictions that are not finite."""
    from onenet.modeling.ops.triton_kernels import triton_matching_cost

    predictions, _, targets = batch(5, device, num_samples=1500)
    logits, boxes = predictions.pred_logits, predictions.pred_boxes
    logits[0, 3], boxes[0, 5, 2], boxes[2, 7] = float("nan"), float("nan"), float("inf")
    for rows in (slice(0, 12), slice(2, 7)):
        arguments = (logits, boxes, targets, rows, MatchingCost(0.5, 3.0, 7.0, 0.4))
        steps, kernel = fused_cost._batched_in_steps(*arguments), triton_matching_cost(*arguments)
        assert torch.equal(steps.isfinite(), kernel.isfinite())
        finite = steps.isfinite()
        assert 0 < finite.sum() < finite.numel()
        torch.testing.assert_close(kernel[finite], steps[finite], **GPU_TOLERANCE)


@pytest.mark.gpu
def test_kernel_on_a_gpu() -> None:
    compare_kernel("cuda")


@pytest.mark.slow
def test_kernel_in_tritons_interpreter(in_tritons_interpreter) -> None:
    in_tritons_interpreter("import test_fused_cost; test_fused_cost.compare_kernel('cpu')")


@pytest.mark.gpu
@pytest.mark.parametrize("matcher_class", [MinCostMatcher, HungarianMatcher])
@pytest.mark.parametrize("prior", [False, True])
def test_matches_on_a_gpu_are_those_of_the_cpu(matcher_class, prior: bool) -> None:
    cost = SpatialPrior(MatchingCost()) if prior else MatchingCost()
    predictions, gts, targets = batch(5, num_samples=3000)
    parts = (predictions.pred_logits, predictions.pred_boxes, predictions.anchors)
    on_gpu = DensePredictions.of(*(x.cuda() for x in parts), (3000,))
    gts_on_gpu = [gt.to("cuda") for gt in gts]
    matcher = matcher_class(cost=cost)
    expected = matcher.match(predictions, targets)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            found = matcher.match(on_gpu, Targets.of(gts_on_gpu, torch.device("cuda")))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in waits if "called a synchronizing" in str(w.message)]
    assert len(waits) == (1 if matcher_class is HungarianMatcher else 0), list(map(str, waits))
    assert [x.tolist() for x in found] == [x.tolist() for x in expected]
