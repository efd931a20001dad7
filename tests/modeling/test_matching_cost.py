"""The matching cost against its formula in plain PyTorch; the GPU kernel against both."""

from __future__ import annotations

import warnings

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import generalized_box_iou

from onenet.modeling.costs import AnchorCost, MatchingCost, SpatialPrior
from onenet.modeling.matcher import HungarianMatcher, MinCostMatcher
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


def plain_cost(cost: MatchingCost, logits, boxes, anchors, gt: Instances) -> torch.Tensor:
    """Equation 1, term by term."""
    boxes = anchors if isinstance(cost, AnchorCost) else boxes
    height, width = gt.image_size
    p = logits[:, gt.gt_classes].sigmoid()
    alpha, gamma = cost.focal_alpha, cost.focal_gamma
    positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    distances = (boxes[:, None] - gt.gt_boxes.tensor[None]).abs()
    l1 = (distances / torch.tensor([width, height] * 2, device=boxes.device)).sum(dim=2)
    giou = generalized_box_iou(boxes, gt.gt_boxes.tensor)
    total = cost.class_weight * (positive - negative) + cost.l1_weight * l1
    return total - cost.giou_weight * giou


@pytest.mark.parametrize(
    "cost", [MatchingCost(), MatchingCost(0.5, 3.0, 7.0, 0.4, 1.5), AnchorCost()]
)
@pytest.mark.parametrize(
    "shape", [(50, 7, 80), (50, 7, 1), (50, 90, 80), (1, 1, 1), (3, 0, 5), (0, 4, 5)]
)
def test_equals_its_formula(cost: MatchingCost, shape: tuple[int, int, int]) -> None:
    inputs = problem(*shape)
    found = cost(*inputs)
    assert found.shape == shape[:2] and found.dtype == torch.float32
    torch.testing.assert_close(found, plain_cost(cost, *inputs), atol=2e-5, rtol=1e-5)


def test_boxes_that_are_turned_over_or_without_area() -> None:
    logits, boxes, anchors, gt = problem(40, 6, 3)
    boxes[:10] = boxes[:10, [2, 3, 0, 1]]  # right of left
    boxes[10:20, 2:] = boxes[10:20, :2]
    boxes[20:30, 2] = boxes[20:30, 0]
    inputs = logits, boxes, anchors, gt
    expected = plain_cost(MatchingCost(), *inputs)
    torch.testing.assert_close(MatchingCost()(*inputs), expected, atol=2e-5, rtol=1e-5)


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
    finite = plain_cost(MatchingCost(), *inputs).isfinite()
    assert torch.equal(MatchingCost()(*inputs).isfinite(), finite)
    assert not finite[2:9].any() and not finite[9, 2] and finite[10:].all()


# Of a score near 1 the formula has the logarithm of 1 - p: the last digit of p decides.
GPU_TOLERANCE = {"atol": 1e-3, "rtol": 1e-4}


@pytest.mark.gpu
@pytest.mark.parametrize("cost", [MatchingCost(), MatchingCost(0.5, 3.0, 7.0, 0.4, 1.5)])
@pytest.mark.parametrize("prior", [False, True])
def test_on_a_gpu(cost: MatchingCost, prior: bool) -> None:
    cost = SpatialPrior(cost) if prior else cost
    logits, boxes, anchors, gt = problem(5000, 60, 20)
    on_gpu = cost(logits.cuda(), boxes.cuda(), anchors.cuda(), gt.to("cuda"))
    expected = cost(logits, boxes, anchors, gt)
    torch.testing.assert_close(on_gpu.cpu(), expected, **GPU_TOLERANCE)


def test_a_subclass_with_terms_of_its_own_is_not_the_kernels(monkeypatch) -> None:
    class Mine(MatchingCost):
        def terms(self, *inputs):
            return {**super().terms(*inputs), "mine": torch.ones(30, 4)}

    used = []
    monkeypatch.setattr("onenet.modeling.costs.run_kernel", lambda *arguments: used.append(1))
    inputs = problem(30, 4, 3)
    expected = plain_cost(MatchingCost(), *inputs)
    torch.testing.assert_close(Mine()(*inputs), expected + 1, atol=2e-5, rtol=1e-5)
    assert not used
    MatchingCost()(*inputs)
    AnchorCost()(*inputs)
    assert len(used) == 2


def compare_kernel(device: str) -> None:
    """The kernel against the formula, with predictions that are not finite."""
    from onenet.modeling.ops.triton_kernels import triton_matching_cost

    cost = MatchingCost(0.5, 3.0, 7.0, 0.4)
    for num_gt in (9, 0):
        logits, boxes, anchors, gt = problem(1500, num_gt, 5)
        logits[3], boxes[5, 2], boxes[7] = float("nan"), float("nan"), float("inf")
        logits, boxes, gt = logits.to(device), boxes.to(device), gt.to(device)
        kernel = triton_matching_cost(logits, boxes, gt, 0.5, 3.0, 7.0, 0.4)
        plain = plain_cost(cost, logits, boxes, anchors, gt)
        finite = plain.isfinite()
        assert kernel.shape == plain.shape and torch.equal(finite, kernel.isfinite())
        assert 0 < finite.sum() < finite.numel() or num_gt == 0
        torch.testing.assert_close(kernel[finite], plain[finite], **GPU_TOLERANCE)


@pytest.mark.gpu
def test_kernel_on_a_gpu() -> None:
    compare_kernel("cuda")


@pytest.mark.slow
def test_kernel_in_tritons_interpreter(in_tritons_interpreter) -> None:
    in_tritons_interpreter("import test_matching_cost; test_matching_cost.compare_kernel('cpu')")


def batch(num_classes: int, num_samples: int):
    sizes = [(150, 210), (90, 80), (200, 70)]
    logits = 3 * torch.randn(3, num_samples, num_classes)
    boxes = random_boxes(3 * num_samples).view(3, num_samples, 4)
    gts = [
        Instances(
            size, gt_boxes=Boxes(random_boxes(n)), gt_classes=torch.randint(num_classes, (n,))
        )
        for size, n in zip(sizes, (3, 0, 9), strict=True)
    ]
    predictions = DensePredictions.from_boxes(
        logits, boxes, random_boxes(num_samples), (num_samples,)
    )
    return predictions, gts, Targets.from_instances(gts, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("matcher_class", [MinCostMatcher, HungarianMatcher])
@pytest.mark.parametrize("prior", [False, True])
def test_matches_on_a_gpu_are_those_of_the_cpu(matcher_class, prior: bool) -> None:
    cost = SpatialPrior(MatchingCost()) if prior else MatchingCost()
    predictions, gts, targets = batch(5, num_samples=3000)
    parts = (predictions.pred_logits, predictions.pred_boxes, predictions.anchors)
    on_gpu = DensePredictions.from_boxes(*(x.cuda() for x in parts), (3000,))
    gts_on_gpu = [gt.to("cuda") for gt in gts]
    matcher = matcher_class(cost=cost)
    expected = matcher.match(predictions, targets)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            found = matcher.match(on_gpu, Targets.from_instances(gts_on_gpu, torch.device("cuda")))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in waits if "called a synchronizing" in str(w.message)]
    assert len(waits) == (1 if matcher_class is HungarianMatcher else 0), list(map(str, waits))
    assert [x.tolist() for x in found] == [x.tolist() for x in expected]
