"""The losses: by hand, against autograd-free loops, and on awkward batches."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import generalized_box_iou_loss

from onenet.modeling.criterion import Criterion, giou_loss
from onenet.modeling.matcher import HungarianMatcher, MinCostMatcher
from onenet.modeling.postprocess import select_candidates
from onenet.structures import Candidates, DensePredictions
from onenet.utils.errors import ConfigError


def predictions(logits: torch.Tensor, boxes: torch.Tensor) -> DensePredictions:
    return DensePredictions.from_boxes(logits, boxes, boxes[0].detach(), (boxes.shape[1],))


def gt_of(boxes: list[list[float]], classes: list[int], size=(100, 100)) -> Instances:
    return Instances(
        size,
        gt_boxes=Boxes(torch.tensor(boxes).view(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def test_losses_by_hand() -> None:
    # Two samples, one class, every score 0.5. The object lies on sample 0, shifted by (10, 0).
    # Focal loss: positive 0.25 * 0.25 * ln 2, negative 0.75 * 0.25 * ln 2. IoU 90*100/(110*100).
    logits = torch.zeros(1, 2, 1)
    boxes = torch.tensor([[[0.0, 0, 100, 100], [150, 150, 190, 190]]])
    gt = gt_of([[10, 0, 110, 100]], [0], size=(200, 400))
    losses = Criterion(matcher=MinCostMatcher(), class_weight=2, l1_weight=5, giou_weight=3)(
        predictions(logits, boxes), [gt]
    )
    assert losses["loss_cls"].item() == pytest.approx(2 * 0.25 * math.log(2))
    assert losses["loss_l1"].item() == pytest.approx(5 * (10 + 10) / 400)
    assert losses["loss_giou"].item() == pytest.approx(3 * (1 - 90 / 110))


def test_normalised_by_objects() -> None:
    logits, boxes = (
        torch.zeros(1, 4, 2),
        torch.tensor([[[i * 20.0, 0, i * 20 + 10, 10] for i in range(4)]]),
    )
    one, two = gt_of([[0, 0, 10, 9]], [0]), gt_of([[0, 0, 10, 9], [20, 0, 30, 9]], [0, 1])
    criterion = Criterion(matcher=MinCostMatcher())
    loss_one = criterion(predictions(logits, boxes), [one])["loss_l1"]
    loss_two = criterion(predictions(logits, boxes), [two])["loss_l1"]
    torch.testing.assert_close(loss_one, loss_two)  # twice the pairs over twice the objects


@pytest.mark.parametrize("counts", [[3, 0], [0, 3], [0, 0]])
def test_empty_images(counts: list[int], make_gt) -> None:
    logits = torch.randn(2, 20, 5, requires_grad=True)
    boxes = make_gt(40).gt_boxes.tensor.view(2, 20, 4).requires_grad_()
    losses = Criterion(matcher=MinCostMatcher())(
        predictions(logits, boxes), [make_gt(n) for n in counts]
    )
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    # DDP needs a gradient everywhere, be it zero.
    assert logits.grad is not None and boxes.grad is not None
    assert logits.grad.abs().sum() > 0
    assert (boxes.grad.abs().sum() > 0) == (sum(counts) > 0)
    if sum(counts) == 0:
        assert losses["loss_l1"] == losses["loss_giou"] == 0


def test_collision_is_positive_for_both_classes_in_any_order() -> None:
    logits = torch.tensor([[[0.3, -0.4, 0.1], [-4.0, -4.0, -4.0]]], requires_grad=True)
    boxes = torch.tensor([[[0.0, 0, 10, 10], [80.0, 80, 90, 90]]])
    gt = gt_of([[0, 0, 10, 12], [0, 0, 12, 10]], [0, 2])
    criterion = Criterion(matcher=MinCostMatcher())
    losses = criterion(predictions(logits, boxes), [gt])
    swapped = criterion(predictions(logits, boxes), [gt[torch.tensor([1, 0])]])
    for name in losses:
        torch.testing.assert_close(losses[name], swapped[name], rtol=0, atol=0)
    losses["loss_cls"].backward()
    # Positives are pushed up, the third class down.
    assert (logits.grad[0, 0] < 0).tolist() == [True, False, True]


def test_more_objects_than_samples(make_gt) -> None:
    gt = make_gt(6)
    p = predictions(torch.randn(1, 2, 5), make_gt(2).gt_boxes.tensor[None])
    for matcher in (MinCostMatcher(), HungarianMatcher()):
        losses = Criterion(matcher=matcher)(p, [gt])
        assert all(loss.isfinite() for loss in losses.values())


def test_zero_area_objects_give_finite_losses_and_gradients() -> None:
    boxes = torch.tensor([[[5.0, 5, 5, 5], [1.0, 1, 4, 4]]], requires_grad=True)
    gt = gt_of([[5, 5, 5, 5], [5, 5, 5, 5]], [0, 0])
    losses = Criterion(matcher=HungarianMatcher())(predictions(torch.zeros(1, 2, 1), boxes), [gt])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert boxes.grad.isfinite().all()


def test_nan_prediction_makes_the_loss_nan(make_gt) -> None:
    logits = torch.randn(1, 20, 5)
    logits[0, 3, 1] = float("nan")
    losses = Criterion(matcher=MinCostMatcher())(
        predictions(logits, make_gt(20).gt_boxes.tensor[None]), [make_gt(2)]
    )
    assert losses["loss_cls"].isnan()  # and Detectron2's trainer stops with FloatingPointError


def test_float32_under_autocast(make_gt) -> None:
    logits, boxes = torch.randn(1, 20, 5), make_gt(20).gt_boxes.tensor[None]
    gt, criterion = [make_gt(3)], Criterion(matcher=MinCostMatcher())
    plain = criterion(predictions(logits, boxes), gt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = criterion(predictions(logits, boxes), gt)
    for name in plain:
        assert cast[name].dtype == torch.float32
        assert torch.equal(plain[name], cast[name])


def test_large_boxes_in_half_precision_stay_finite() -> None:
    boxes = torch.tensor([[[0.0, 0, 1300, 1300]]]).half()
    losses = Criterion(matcher=MinCostMatcher())(
        predictions(torch.zeros(1, 1, 1).half(), boxes),
        [gt_of([[0, 0, 1333, 1333]], [0], size=(1333, 1333))],
    )
    assert all(loss.isfinite() for loss in losses.values())


def focal(p: float, positive: bool) -> float:
    return 0.25 * (1 - p) ** 2 * -math.log(p) if positive else 0.75 * p**2 * -math.log(1 - p)


def row_of_locations(logits: torch.Tensor, boxes: torch.Tensor) -> DensePredictions:
    """Locations at x = 10, 30, 50 and 70, of stride 20."""
    anchors = torch.tensor([[x - 10.0, 0, x + 10, 20] for x in (10, 30, 50, 70)])
    return DensePredictions.from_boxes(logits, boxes, anchors, (4,))


def test_one_to_many_by_hand() -> None:
    # The object's centre is x = 30. Three locations are less than 1.5 strides away, the fourth two.
    # Of their boxes one is shifted by 2. An image without objects adds negatives, every score is
    # 0.5, and all is divided by the three.
    boxes = torch.tensor([[0.0, 0, 60, 20], [2, 0, 62, 20], [0, 0, 60, 20], [60, 0, 80, 20]])
    batch = row_of_locations(torch.zeros(2, 4, 1), boxes.expand(2, 4, 4))
    gts = [gt_of([[0, 0, 60, 20]], [0], (200, 400)), gt_of([], [])]
    losses = Criterion(matcher=MinCostMatcher(), class_weight=2, giou_weight=3, center_radius=1.5)(
        batch, gts
    )
    expected = {
        "loss_cls": 2 * (3 * focal(0.5, True) + 5 * focal(0.5, False)) / 3,
        "loss_l1": 5 * (2 + 2) / 400 / 3,
        "loss_giou": 3 * (1 - 58 / 62) / 3,
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected)


@pytest.mark.parametrize("radius", [0.0, 1.5])
def test_rescored_logits_have_a_loss_of_their_own(radius: float) -> None:
    """One-to-one in any case, with positives chosen by the rescored scores; only they learn."""
    # Samples 1 and 2 have one box, near the first object. By the logits sample 1 is taken, by the
    # rescored ones sample 2, since 1 is no candidate. The second object takes sample 3.
    boxes = torch.tensor([[[0.0, 0, 9, 20], [0, 0, 62, 20], [0, 0, 62, 20], [60, 0, 80, 20]]])
    boxes = boxes.expand(2, 4, 4).clone().requires_grad_()
    logits = torch.tensor([0.0, 2, 0, 0]).expand(2, 4)[..., None].clone().requires_grad_()
    rescored = torch.tensor([0.0, 0, 1, 0]).expand(2, 4).clone().requires_grad_()
    index = torch.tensor([[0, 2, 3]] * 2)
    candidates = Candidates(rescored.gather(1, index), index, torch.zeros_like(index), boxes)
    gts = [gt_of([[0, 0, 60, 20], [60, 0, 80, 20]], [0, 0]), gt_of([], [])]
    criterion = Criterion(matcher=MinCostMatcher(), class_weight=2, center_radius=radius)
    batch = row_of_locations(logits, boxes)
    losses = criterion(batch, gts, candidates)
    loss = losses.pop("loss_cls_rescored")
    score = 1 / (1 + math.exp(-1))
    cross_entropies = -math.log(score) - math.log(1 - score) - 4 * math.log(0.5)
    assert loss.item() == pytest.approx(2 * cross_entropies / 6)
    loss.backward()
    assert (rescored.grad < 0).tolist() == [[False, False, True, True], [False] * 4]
    assert logits.grad is None and boxes.grad is None

    rescored.grad = None
    sum(losses.values()).backward()
    assert rescored.grad is None and boxes.grad.abs().sum() > 0
    pushed_up = [radius > 0, True, radius > 0, True]
    assert (logits.grad[..., 0] < 0).tolist() == [pushed_up, [False] * 4]
    # The other losses are as if there were no rescoring
    plain = criterion(batch, gts)
    assert set(plain) == set(losses)
    assert all(torch.equal(plain[name], losses[name]) for name in plain)


@pytest.mark.parametrize("counts", [[3, 0], [0, 0]])
def test_one_to_many_and_rescored_on_empty_images(counts: list[int], make_gt) -> None:
    logits = torch.randn(2, 20, 5, requires_grad=True)
    rescored = torch.randn(2, 30, requires_grad=True)
    boxes = make_gt(40).gt_boxes.tensor.view(2, 20, 4).requires_grad_()
    candidates = select_candidates(predictions(logits, boxes), 30)._replace(logits=rescored)
    criterion = Criterion(matcher=MinCostMatcher(), center_radius=1.5)
    losses = criterion(predictions(logits, boxes), [make_gt(n) for n in counts], candidates)
    assert len(losses) == 4 and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert logits.grad.abs().sum() > 0 and rescored.grad.abs().sum() > 0
    assert (boxes.grad.abs().sum() > 0) == (sum(counts) > 0)


def test_what_the_criterion_refuses() -> None:
    with pytest.raises(
        ConfigError, match=r"CENTER_RADIUS is -1\.0; give a radius in strides, or 0"
    ):
        Criterion(matcher=MinCostMatcher(), center_radius=-1.0)


def test_giou_loss_is_torchvisions(make_gt) -> None:
    boxes = make_gt(300).gt_boxes.tensor.requires_grad_()
    gt_boxes = make_gt(300).gt_boxes.tensor
    gt_boxes[:50] = boxes[:50].detach()  # some coincide, some have no area
    gt_boxes[50:60, 2:] = gt_boxes[50:60, :2]
    ours, theirs = giou_loss(boxes, gt_boxes), generalized_box_iou_loss(boxes, gt_boxes)
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours[50:].sum(), boxes)
    (expected,) = torch.autograd.grad(theirs[50:].sum(), boxes)
    torch.testing.assert_close(gradient, expected)
