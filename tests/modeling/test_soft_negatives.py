"""CenterNet's softened negatives: radius and weights by hand."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from fvcore.nn import sigmoid_focal_loss
from torchvision.ops import box_iou

from onenet.modeling.costs import PointCost
from onenet.modeling.criterion import Criterion
from onenet.modeling.matcher import MinCostMatcher
from onenet.modeling.soft_negatives import gaussian_radius, negative_weights
from onenet.structures import DensePredictions


@pytest.mark.parametrize("size", [(10.0, 10.0), (40.0, 7.0), (3.0, 90.0)])
@pytest.mark.parametrize("min_iou", [0.5, 0.7, 0.9])
def test_radius_is_the_outward_one_without_its_division(size, min_iou: float) -> None:
    outwards = gaussian_radius(torch.tensor([size]), min_iou).item() / (4 * min_iou)
    box = torch.tensor([[0.0, 0, *size]])
    grown = box + outwards * torch.tensor([-1.0, -1, 1, 1])
    assert box_iou(box, grown).item() == pytest.approx(min_iou, abs=1e-4)


def test_weight_beside_the_positive() -> None:
    # 20 x 20: radius sqrt(0.49 * 1600 + 0.84 * 400) - 28 = 5.466; sigma 5.466 / 3 + 4 / 6 = 2.489
    # Four pixels away Y = exp(-16 / (2 * 2.489^2)) = 0.275, and (1 - 0.275)^4 = 0.276
    weights = negative_weights(
        line_of_squares(40, 4.0),
        (40,),
        torch.tensor([20]),
        torch.tensor([[72.0, -8, 92, 12]]),
        torch.tensor([0]),
        num_classes=1,
    )
    assert weights[21].item() == pytest.approx(0.276, abs=1e-3)


def test_levels_of_anchors_whose_sides_are_no_whole_numbers() -> None:
    centers = torch.arange(30).float()[:, None] * 8 + 4
    anchors = torch.cat((centers, centers, centers, centers), dim=1)
    anchors = anchors + 40.3 / 2 * torch.tensor([-1.0, -1, 1, 1])
    weights = negative_weights(
        anchors, (20, 10), torch.tensor([10]), anchors[10:11], torch.tensor([0]), num_classes=1
    )
    assert (weights[9:12] < 0.9).all()
    assert (weights[20:] == 1).all()


def line_of_squares(num: int, stride: float) -> torch.Tensor:
    left = torch.arange(num) * stride
    return torch.stack((left, 0 * left, left + stride, 0 * left + stride), dim=1)


def test_weights_by_hand() -> None:
    # Five points 4 pixels apart and two of a coarser level; one object of 20 x 20 at point 2.
    anchors = torch.cat((line_of_squares(5, 4.0), line_of_squares(2, 8.0)))
    box = torch.tensor([[0.0, -8, 20, 12]])
    weights = negative_weights(
        anchors, (5, 2), torch.tensor([2]), box, torch.tensor([1]), num_classes=3
    )
    sigma = gaussian_radius(torch.tensor([[20.0, 20.0]])).item() / 3 + 4 / 6
    expected = [(1 - math.exp(-(d**2) / (2 * sigma**2))) ** 4 for d in (8, 4, 0, 4, 8)]
    torch.testing.assert_close(weights[:5, 1], torch.tensor(expected))
    assert weights[2, 1] == 0
    assert (weights[5:] == 1).all()  # another level
    assert (weights[:, [0, 2]] == 1).all()  # other classes


def test_overlapping_objects_take_the_larger_gaussian() -> None:
    anchors = line_of_squares(8, 4.0)
    boxes = torch.tensor([[0.0, -8, 20, 12], [8, -8, 28, 12]])
    samples, classes = torch.tensor([2, 4]), torch.tensor([0, 0])
    both = negative_weights(anchors, (8,), samples, boxes, classes, 1)
    each = [
        negative_weights(anchors, (8,), samples[i : i + 1], boxes[i : i + 1], classes[:1], 1)
        for i in (0, 1)
    ]
    assert torch.equal(both, torch.minimum(*each))


def test_no_objects_and_no_area() -> None:
    anchors = line_of_squares(4, 4.0)
    none = torch.zeros(0, dtype=torch.int64)
    assert (negative_weights(anchors, (4,), none, torch.zeros(0, 4), none, 2) == 1).all()
    point = torch.tensor([[6.0, 2, 6, 2]])
    weights = negative_weights(anchors, (4,), torch.tensor([1]), point, torch.tensor([0]), 2)
    assert weights.isfinite().all()


def test_criterion_weighs_negatives_only() -> None:
    anchors = line_of_squares(5, 4.0)
    logits = torch.randn(2, 5, 3, requires_grad=True)
    predictions = DensePredictions.from_boxes(logits, anchors.expand(2, 5, 4), anchors, (5,))
    gt = Instances((16, 20), gt_boxes=Boxes([[0, -8, 20, 12]]), gt_classes=torch.tensor([1]))
    matcher = MinCostMatcher(cost=PointCost(class_weight=0.0))
    soft = Criterion(matcher=matcher, soft_negatives=True)(predictions, [gt, gt[[]]])

    target = torch.zeros(2, 5, 3)
    target[0, 2, 1] = 1
    losses = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2)
    sigma = gaussian_radius(torch.tensor([[20.0, 20.0]])).item() / 3 + 4 / 6
    for i, distance in ((0, 8), (1, 4), (3, 4), (4, 8)):
        losses[0, i, 1] *= (1 - math.exp(-(distance**2) / (2 * sigma**2))) ** 4
    torch.testing.assert_close(soft["loss_cls"], 2 * losses.sum())
    hard = Criterion(matcher=matcher)(predictions, [gt, gt[[]]])
    assert hard["loss_cls"] > soft["loss_cls"]
    assert torch.equal(hard["loss_l1"], soft["loss_l1"])
