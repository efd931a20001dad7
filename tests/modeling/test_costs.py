"""Costs against numbers worked out by hand, and against a slow loop."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances

from onenet.config import add_onenet_config
from onenet.modeling.costs import (
    AnchorCost,
    MatchingCost,
    PointCost,
    SpatialPrior,
    build_cost,
    focal_cost,
    giou_cost,
    l1_cost,
)
from onenet.utils.errors import ConfigError


def test_focal_cost_by_hand() -> None:
    # p = 0.5: 0.25 * 0.25 * ln 2 - 0.75 * 0.25 * ln 2 = -0.125 ln 2
    # p = 0.8 (logit ln 4): 0.25 * 0.04 * -ln 0.8 - 0.75 * 0.64 * -ln 0.2
    logits = torch.tensor([[0.0, 9.0], [math.log(4), 9.0]])
    cost = focal_cost(logits, torch.tensor([0]))
    expected = [
        -0.125 * math.log(2),
        0.25 * 0.04 * -math.log(0.8) - 0.75 * 0.64 * -math.log(0.2),
    ]
    assert cost[:, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_focal_cost_is_finite_for_saturated_scores() -> None:
    cost = focal_cost(torch.tensor([[1e4], [-1e4]]), torch.tensor([0]))
    assert cost.isfinite().all()
    assert cost[0] < cost[1]


def test_l1_cost_by_hand() -> None:
    # Image 200 high, 100 wide: |10-20|/100 + |20-20|/200 + |30-50|/100 + |60-100|/200
    cost = l1_cost(
        torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[20.0, 20, 50, 100]]), (200, 100)
    )
    assert cost.item() == pytest.approx(0.1 + 0 + 0.2 + 0.2)


@pytest.mark.parametrize(
    ("box", "giou"),
    [
        ([0.0, 0, 10, 10], 1.0),
        # Half of it: IoU 1/2, hull = union
        ([0.0, 0, 10, 5], 0.5),
        # Apart by one box's width: IoU 0, hull 300, union 200
        ([20.0, 0, 30, 10], -100 / 300),
        # Diagonal neighbours: IoU 0, hull 400, union 200
        ([10.0, 10, 20, 20], -0.5),
    ],
)
def test_giou_cost_by_hand(box: list[float], giou: float) -> None:
    cost = giou_cost(torch.tensor([box]), torch.tensor([[0.0, 0, 10, 10]]))
    assert cost.item() == pytest.approx(-giou)


def loop_cost(logits, boxes, gt: Instances, weights=(2.0, 5.0, 2.0)) -> list[list[float]]:
    """Equation 1 of the paper in plain Python, float64."""
    height, width = gt.image_size
    rows = []
    for sample in range(len(logits)):
        row = []
        for j in range(len(gt)):
            p = 1 / (1 + math.exp(-logits[sample][int(gt.gt_classes[j])].item()))
            positive = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
            negative = 0.75 * p**2 * -math.log(1 - p + 1e-8)
            a, b = boxes[sample].tolist(), gt.gt_boxes.tensor[j].tolist()
            l1 = sum(abs(x - y) / s for x, y, s in zip(a, b, (width, height) * 2, strict=True))
            inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(
                min(a[3], b[3]) - max(a[1], b[1]), 0
            )
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
            hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
            giou = inter / union - (hull - union) / hull
            w_class, w_l1, w_giou = weights
            row.append(w_class * (positive - negative) + w_l1 * l1 - w_giou * giou)
        rows.append(row)
    return rows


def test_matching_cost_equals_slow_loop(make_gt) -> None:
    gt = make_gt(4)
    logits, boxes = torch.randn(30, 5) * 3, make_gt(30).gt_boxes.tensor
    expected = torch.tensor(loop_cost(logits, boxes, gt))
    torch.testing.assert_close(
        MatchingCost()(logits, boxes, boxes, gt), expected, rtol=1e-4, atol=1e-5
    )
    weighted = MatchingCost(class_weight=0.0, l1_weight=1.0, giou_weight=0.5)
    expected = torch.tensor(loop_cost(logits, boxes, gt, (0.0, 1.0, 0.5)))
    torch.testing.assert_close(weighted(logits, boxes, boxes, gt), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_input_gives_float32() -> None:
    gt = Instances((1000, 1000), gt_boxes=Boxes([[0, 0, 1000, 1000]]), gt_classes=torch.tensor([0]))
    logits, boxes = torch.tensor([[2.0]]).half(), torch.tensor([[0.0, 0, 900, 900]]).half()
    cost = MatchingCost()(logits, boxes, boxes, gt)
    assert cost.dtype == torch.float32  # an area of 810,000 is inf in half precision
    torch.testing.assert_close(cost, MatchingCost()(logits.float(), boxes.float(), boxes, gt))


def test_terms_add_up(make_gt) -> None:
    gt, anchors = make_gt(4), make_gt(30).gt_boxes.tensor
    logits, boxes = torch.randn(30, 5), make_gt(30).gt_boxes.tensor
    costs = (MatchingCost(), AnchorCost(), PointCost(), SpatialPrior(AnchorCost()))
    for cost in costs:
        terms = cost.terms(logits, boxes, anchors, gt)
        assert {term.shape for term in terms.values()} == {(30, 4)}
        torch.testing.assert_close(sum(terms.values()), cost(logits, boxes, anchors, gt))
        if "class" in terms:
            torch.testing.assert_close(terms["class"], 2 * focal_cost(logits, gt.gt_classes))


def test_anchor_cost_looks_at_anchors_only(make_gt) -> None:
    gt, anchors = make_gt(4), make_gt(30).gt_boxes.tensor
    logits, boxes = torch.randn(30, 5), make_gt(30).gt_boxes.tensor
    expected = MatchingCost()(logits, anchors, anchors, gt)
    assert torch.equal(AnchorCost()(logits, boxes, anchors, gt), expected)
    without_class = AnchorCost(class_weight=0.0)
    first = without_class(logits, boxes, anchors, gt)
    assert torch.equal(first, without_class(-logits, boxes + 9, anchors, gt))


def squares(centers: list[list[float]], side: float) -> torch.Tensor:
    half = torch.tensor([-side, -side, side, side]) / 2
    return torch.tensor(centers).repeat(1, 2) + half


def test_point_cost_is_the_distance_from_the_centre() -> None:
    # Image 200 wide, 100 high; the object's centre is (50, 30).
    gt = Instances((100, 200), gt_boxes=Boxes([[30, 20, 70, 40]]), gt_classes=torch.tensor([0]))
    anchors = squares([[50.0, 30], [54, 30], [50, 34], [90, 50]], side=4)
    cost = PointCost(class_weight=0.0, l1_weight=5.0)(torch.zeros(4, 1), anchors, anchors, gt)
    expected = 5 * torch.tensor([0.0, 4 / 200, 4 / 100, 40 / 200 + 20 / 100])
    torch.testing.assert_close(cost[:, 0], expected)


@pytest.mark.parametrize(
    ("longer_side", "stride"),
    [(2, 8), (128, 8), (129, 16), (256, 16), (257, 32), (512, 32), (5000, 32)],
)
def test_point_cost_takes_the_level_that_fcos_takes(longer_side: float, stride: float) -> None:
    anchors = torch.cat([squares([[100.0, 100], [120, 100]], side=s) for s in (8.0, 16.0, 32.0)])
    box = [100 - longer_side / 2, 99, 100 + longer_side / 2, 101]
    gt = Instances((400, 400), gt_boxes=Boxes([box]), gt_classes=torch.tensor([0]))
    cost = PointCost()(torch.zeros(6, 1), anchors, anchors, gt)[:, 0]
    assert torch.equal(cost.isfinite(), anchors[:, 2] - anchors[:, 0] == stride)


@pytest.mark.parametrize("name", ["MatchingCost", "AnchorCost", "PointCost"])
def test_cost_from_config(name: str) -> None:
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.MODEL.ONENET.MATCHER.merge_from_list(["COST", name, "CLASS_WEIGHT", 0.5])
    if name == "AnchorCost":
        with pytest.raises(ConfigError, match=r"does not go with .*'FCOSHead'.*'PointCost'"):
            build_cost(cfg)
        cfg.MODEL.ONENET.HEAD.NAME = "RetinaNetHead"
    cost = build_cost(cfg)
    assert type(cost).__name__ == name
    assert (cost.class_weight, cost.l1_weight, cost.giou_weight) == (0.5, 5.0, 2.0)
    cfg.MODEL.ONENET.MATCHER.COST = "Luck"
    with pytest.raises(ConfigError, match=r"MATCHER.COST is 'Luck'.*PointCost"):
        build_cost(cfg)


def test_candidates_by_hand() -> None:
    # Stride 4: centres at 2, 6, 10, ... The box's centre is (12, 12).
    anchors = squares([[x, 10.0] for x in (2.0, 6, 10, 14, 18, 22)], side=4)
    boxes = torch.tensor([[4.0, 4, 20, 20]])
    inside = SpatialPrior(MatchingCost()).candidates(anchors, boxes)[:, 0]
    assert inside.tolist() == [False, True, True, True, True, False]
    # A box between all centres, and one far outside, have the nearest; on a tie, both.
    small = torch.tensor([[11.5, 11.5, 12.5, 12.5], [90.0, 90, 92, 92]])
    nearest = SpatialPrior(MatchingCost()).candidates(anchors, small)
    assert nearest.T.tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]]


def test_prior_keeps_the_cost_of_candidates(make_gt) -> None:
    gt, anchors = make_gt(4), make_gt(30).gt_boxes.tensor
    logits, boxes = torch.randn(30, 5), make_gt(30).gt_boxes.tensor
    prior = SpatialPrior(MatchingCost())
    cost, candidates = (
        prior(logits, boxes, anchors, gt),
        prior.candidates(anchors, gt.gt_boxes.tensor),
    )
    assert candidates.any(dim=0).all() and not candidates.all()
    plain = MatchingCost()(logits, boxes, anchors, gt)
    assert torch.equal(cost[candidates], plain[candidates])
    assert (cost[~candidates] == float("inf")).all()


def test_prior_from_config() -> None:
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.MODEL.ONENET.MATCHER.L1_WEIGHT = 0.5
    plain = MatchingCost(l1_weight=0.5)
    assert build_cost(cfg) == plain
    cfg.MODEL.ONENET.MATCHER.PRIOR = "box"
    assert build_cost(cfg) == SpatialPrior(plain)
    cfg.MODEL.ONENET.MATCHER.PRIOR = "ball"
    with pytest.raises(ConfigError, match="PRIOR is 'ball'; choose 'box', or ''"):
        build_cost(cfg)
