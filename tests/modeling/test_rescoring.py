"""Rescoring: against a loop over pairs, what it may look at, and the top-k that it is part of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from onenet.modeling.postprocess import select_top_k
from onenet.modeling.rescoring import Rescoring, pairwise_iou
from onenet.structures import Candidates, DensePredictions
from onenet.utils.errors import ConfigError


def scene(num_images: int = 2, num_candidates: int = 25, num_classes: int = 3) -> Candidates:
    """Crowded candidates, best first."""
    corner = torch.rand(num_images, num_candidates, 2) * 30
    boxes = torch.cat((corner, corner + 5 + torch.rand(num_images, num_candidates, 2) * 30), dim=2)
    logits = torch.randn(num_images, num_candidates).sort(dim=1, descending=True).values
    classes = torch.randint(num_classes, (num_images, num_candidates))
    return Candidates(logits, torch.zeros_like(classes), classes, boxes)


def without(candidates: Candidates, place: int) -> Candidates:
    return Candidates(*(torch.cat((x[:, :place], x[:, place + 1 :]), dim=1) for x in candidates))


def random_rescoring() -> Rescoring:
    module = Rescoring(100)
    module.weights.data = torch.rand(3) * torch.tensor([0.1, 0.2, 0.2]) + 0.01
    return module


def by_loop(module: Rescoring, candidates: Candidates) -> Tensor:
    """The new logits, pair by pair."""
    logits, _, classes, boxes = candidates
    result = logits.clone()
    for n, (scores, kinds) in enumerate(zip(logits.sigmoid(), classes.tolist(), strict=True)):
        overlaps = (2 * box_iou(boxes[n], boxes[n]) - 1).clamp(min=0).tolist()
        suppressed = [0.0] * len(kinds)
        for _ in range(3):
            before = list(suppressed)
            for i, kind in enumerate(kinds):
                left = [overlaps[i][j] - before[j] for j in range(i) if kinds[j] == kind]
                suppressed[i] = max([0.0, *left])
        for i, kind in enumerate(kinds):
            votes = [float(o * s) for o, s in zip(overlaps[i], scores, strict=True)]
            own = sum(vote for vote, other in zip(votes, kinds, strict=True) if other == kind)
            numbers = (-500 * suppressed[i], 10 * math.log(own), 10 * math.log(own / sum(votes)))
            result[n, i] += sum(w * x for w, x in zip(module.weights, numbers, strict=True))
    return result


@pytest.mark.parametrize("num_classes", [1, 3, 20])
@torch.no_grad()
def test_as_a_loop_over_pairs(num_classes: int) -> None:
    module, candidates = random_rescoring(), scene(num_candidates=60, num_classes=num_classes)
    torch.testing.assert_close(module(candidates), by_loop(module, candidates))


@torch.no_grad()
def test_starts_as_a_soft_nms() -> None:
    """Of two that overlap the lower falls by 10 (2 IoU - 1); a third, behind it, does not."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0.0, 2, 10, 12], [0.0, 4, 10, 14], [0, 30, 9, 40]]])
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    none = torch.zeros(1, 4, dtype=torch.int64)
    out = Rescoring(100, "soft_nms")(Candidates(logits, none, none, boxes))
    overlap = 2 * 8 / 12 - 1
    torch.testing.assert_close(out, torch.tensor([[3.0, 2 - 10 * overlap, 1.0, 0.0]]))
    apart = Candidates(logits, none, torch.tensor([[0, 1, 2, 3]]), boxes)
    torch.testing.assert_close(Rescoring(100, "soft_nms")(apart), logits)  # of other classes


@torch.no_grad()
def test_votes_by_hand() -> None:
    """Coinciding boxes: two of class 0 agree, one of class 1 contradicts."""
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 3])
    scores, classes = torch.tensor([[0.8, 0.4, 0.2]]), torch.tensor([[0, 0, 1]])
    candidates = Candidates(scores.logit(), classes, classes, boxes)
    change = Rescoring(100)(candidates) - Rescoring(100, "soft_nms")(candidates)
    expected = [1.2 * 1.2 / 1.4, 1.2 * 1.2 / 1.4, 0.2 * 0.2 / 1.4]
    torch.testing.assert_close(change, torch.tensor([expected]).log())


@torch.no_grad()
def test_suppression_is_that_of_nms_where_boxes_coincide_or_lie_apart() -> None:
    corner = torch.randint(4, (2, 60, 2)) * 50.0
    candidates = scene(num_candidates=60)._replace(boxes=torch.cat((corner, corner + 40), dim=2))
    fallen = Rescoring(100, "soft_nms")(candidates) < candidates.logits
    for n, (logits, _, classes, boxes) in enumerate(zip(*candidates, strict=True)):
        kept = batched_nms(boxes, logits, classes, 0.6)
        assert sorted(kept.tolist()) == (~fallen[n]).nonzero().flatten().tolist()


def test_zero_starts_without_effect_and_learns() -> None:
    module, candidates = Rescoring(100, "zero"), scene()
    logits = module(candidates)
    assert torch.equal(logits, candidates.logits)
    logits.sum().backward()
    assert (module.weights.grad.abs() > 0).all()


def test_gradients_reach_all_of_it_and_nothing_else() -> None:
    candidates = scene()
    leaves = (candidates.logits.requires_grad_(), candidates.boxes.requires_grad_())
    module = random_rescoring()
    module(candidates).square().sum().backward()
    assert leaves[0].grad is None and leaves[1].grad is None
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("place", [0, 12, 24])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_harms_itself_alone(bad: float, place: int) -> None:
    """To the others it is as if it were not there."""
    module, candidates = random_rescoring(), scene(num_images=1, num_classes=1)
    others = [i for i in range(25) if i != place]
    expected = module(without(candidates, place))[0]
    logits, boxes = candidates.logits.clone(), candidates.boxes.clone()
    logits[0, place], boxes[0, place, 2] = bad, float("nan")
    bad_logit = module(candidates._replace(logits=logits))[0]
    bad_box = module(candidates._replace(boxes=boxes))[0]
    for out in (bad_logit, bad_box):
        torch.testing.assert_close(out[others], expected)
    torch.testing.assert_close(bad_logit[place], torch.tensor(bad), equal_nan=True)
    assert bad_box[place].isfinite()
    (bad_logit[others].square().sum() + bad_box.square().sum()).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@torch.no_grad()
def test_huge_logits_lead_as_large_ones() -> None:
    module, candidates = random_rescoring(), scene(num_images=1, num_classes=1)
    candidates.logits[0, 0] = 30.0
    expected = module(candidates)
    candidates.logits[0, 0] = 3e38
    assert torch.equal(module(candidates)[0, 1:], expected[0, 1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype) -> None:
    module, candidates = random_rescoring(), scene()
    candidates = candidates._replace(logits=candidates.logits.to(dtype))
    expected = module(candidates)
    out = module.to(dtype)(candidates)
    assert out.dtype == torch.float32
    assert (out - expected).abs().median() < 0.05


@torch.no_grad()
def test_pairwise_iou() -> None:
    boxes = scene().boxes
    torch.testing.assert_close(pairwise_iou(boxes), torch.stack([box_iou(b, b) for b in boxes]))
    points = torch.tensor([[[3.0, 3, 3, 3], [3, 3, 3, 3]]])
    assert torch.equal(pairwise_iou(points), torch.zeros(1, 2, 2))


@pytest.mark.parametrize(
    ("num_candidates", "k", "expected"),
    [
        # The second falls by 10, and behind the third
        (3, 3, [(2.0, 0.0), (0.0, 50.0), (-9.0, 0.0)]),
        (3, 2, [(2.0, 0.0), (0.0, 50.0)]),
        (99, 2, [(2.0, 0.0), (0.0, 50.0)]),  # more than there are
        (2, 2, [(2.0, 0.0), (-9.0, 0.0)]),  # the third was no candidate
        (1, 2, [(2.0, 0.0), (-9.0, 0.0)]),  # as many as are wanted, at least
    ],
)
@torch.no_grad()
def test_the_best_after_rescoring_by_hand(num_candidates: int, k: int, expected: list) -> None:
    # Two of class 1 coincide; the third, of class 0, lies apart
    logits = torch.tensor([[[-9.0, 2.0], [-9.0, 1.0], [0.0, -9.0]]])
    boxes = torch.tensor([[[x, 0.0, x + 10, 10] for x in (0.0, 0.0, 50.0)]])
    predictions = DensePredictions.from_boxes(logits, boxes, boxes[0], (3,))
    scores, classes, found = select_top_k(predictions, k, Rescoring(num_candidates, "soft_nms"))
    torch.testing.assert_close(scores, torch.tensor([[x for x, _ in expected]]).sigmoid())
    assert classes[0].tolist() == [0 if x == 50 else 1 for _, x in expected]
    assert found[0, :, 0].tolist() == [x for _, x in expected]


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match=r"RESCORING\.CANDIDATES is -1; give a number, or 0"):
        Rescoring(-1)
    with pytest.raises(ConfigError, match=r"RESCORING\.INIT is 'tree'; choose one of: voting"):
        Rescoring(100, "tree")
