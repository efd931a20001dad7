"""Rescoring: against a loop over pairs, what it may look at, and what it can learn."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from onenet.heads import DensePredictions
from onenet.heads.rescoring import PairwiseRescoring, pairwise_iou


def scene(num_images: int = 2, num_classes: int = 3, per_location: int = 1):
    """Predictions on two levels, crowded; with the maps they come from."""
    maps = [torch.randn(num_images, 8, 4, 5), torch.randn(num_images, 8, 2, 3)]
    num_samples = sum(x.shape[2] * x.shape[3] for x in maps) * per_location
    corner = torch.rand(num_images, num_samples, 2) * 30
    boxes = torch.cat((corner, corner + 5 + torch.rand(num_images, num_samples, 2) * 30), dim=2)
    logits = torch.randn(num_images, num_samples, num_classes)
    return DensePredictions.of(logits, boxes, boxes[0], (num_samples,)), maps


def random_rescoring(num_candidates: int, num_anchors: int = 1) -> PairwiseRescoring:
    module = PairwiseRescoring(8, num_candidates, num_anchors)
    nn.init.normal_(module.out[2].weight)  # is zero at first
    return module


def candidates(logits: Tensor, k: int) -> Iterator[tuple[int, int]]:
    """(sample, class) of the best logits of an image."""
    for place in logits.flatten().argsort(descending=True)[:k].tolist():
        yield divmod(place, logits.shape[1])


def by_loop(module: PairwiseRescoring, predictions: DensePredictions, maps: list[Tensor]) -> Tensor:
    """The new logits, pair by pair."""
    result = predictions.pred_logits.clone()
    embedded = torch.cat([module.embed(x).flatten(2) for x in maps], dim=2)  # (N, D, L)
    for image, logits in enumerate(predictions.pred_logits):
        chosen = list(candidates(logits, module.num_candidates))
        for sample, label in chosen:
            box, own = (
                predictions.pred_boxes[image, sample],
                embedded[image, :, sample // module.num_anchors],
            )
            vectors, weighted = [torch.zeros(16)], torch.zeros(16)
            others = [s for s, other_label in chosen if other_label == label and s != sample]
            ious = box_iou(box[None], predictions.pred_boxes[image, others])[0]
            for iou, other in sorted(zip(ious, others, strict=True), reverse=True)[:16]:
                if iou == 0:
                    continue
                other_box = predictions.pred_boxes[image, other]
                sides, other_sides = box[2:] - box[:2], other_box[2:] - other_box[:2]
                shift = (other_box[:2] + other_box[2:] - box[:2] - box[2:]) / 2 / sides
                theirs = embedded[image, :, other // module.num_anchors]
                relation = [
                    iou,
                    (logits[other, label] - logits[sample, label]).tanh(),
                    F.cosine_similarity(own, theirs, dim=0),
                    *shift.abs().clamp(max=2),
                    *(other_sides / sides).log().abs().clamp(max=2),
                ]
                vectors.append(module.pair(torch.stack(relation)))
                weighted = weighted + vectors[-1] * iou
            largest = torch.stack(vectors).amax(dim=0)
            known = torch.cat((largest, weighted, own, logits[sample, label][None]))
            result[image, sample, label] += module.out(known)[0]
    return result


@pytest.mark.parametrize(("per_location", "num_classes"), [(1, 3), (2, 3), (2, 1), (2, 20)])
@torch.no_grad()
def test_as_a_loop_over_pairs(per_location: int, num_classes: int) -> None:
    torch.manual_seed(0)
    # Of one class, these have more neighbours than are looked at
    module = random_rescoring(25, per_location)
    predictions, maps = scene(num_classes=num_classes, per_location=per_location)
    out = module(predictions, module.embeddings(maps))
    torch.testing.assert_close(out.pred_logits, by_loop(module, predictions, maps))
    assert torch.equal(out.pred_boxes, predictions.pred_boxes)
    changed = (out.pred_logits != predictions.pred_logits).flatten(1).sum(dim=1)
    assert changed.tolist() == [25, 25]


@torch.no_grad()
def test_starts_without_effect_and_takes_few() -> None:
    torch.manual_seed(0)
    predictions, maps = scene()
    module = PairwiseRescoring(in_channels=8, num_candidates=10**6)  # more than there are
    out = module(predictions, module.embeddings(maps))
    assert torch.equal(out.pred_logits, predictions.pred_logits)


def test_gradients_reach_features_and_logits_but_no_box() -> None:
    torch.manual_seed(0)
    predictions, maps = scene()
    maps = [x.requires_grad_() for x in maps]
    leaves = (predictions.pred_logits.requires_grad_(), predictions.pred_boxes.requires_grad_())
    module = random_rescoring(20)
    module(predictions, module.embeddings(maps)).pred_logits.square().sum().backward()
    assert leaves[0].grad.count_nonzero() == leaves[0].numel()  # those that stay, too
    assert leaves[1].grad is None
    assert all(x.grad.abs().sum() > 0 for x in maps)
    assert not [name for name, p in module.named_parameters() if p.grad is None]


@pytest.mark.parametrize("num_candidates", [20, 1000])  # all, too
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_harms_itself_alone(bad: float, num_candidates: int) -> None:
    torch.manual_seed(0)
    module, (predictions, maps) = random_rescoring(num_candidates), scene(num_images=1)
    logits, boxes = predictions.pred_logits, predictions.pred_boxes
    chosen = list(candidates(logits[0], 20))
    logits[0][chosen[0]] = bad
    boxes[0, chosen[1][0], 2] = bad
    out = module(predictions, module.embeddings(maps)).pred_logits
    expected = logits.new_tensor(bad)
    torch.testing.assert_close(out[0][chosen[0]], expected, equal_nan=True)
    assert out.isfinite().sum() == out.numel() - 1
    out[out.isfinite()].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, (predictions, maps) = random_rescoring(1000), scene()
    halved = predictions._replace(pred_logits=predictions.pred_logits.to(dtype))
    exact = halved._replace(pred_logits=halved.pred_logits.float())
    expected = module(exact, module.embeddings(maps)).pred_logits
    out = module.to(dtype)(halved, module.embeddings([x.to(dtype) for x in maps])).pred_logits
    assert out.dtype == dtype
    assert (out.float() - expected).abs().median() < 0.05


@torch.no_grad()
def test_pairwise_iou() -> None:
    torch.manual_seed(0)
    boxes = scene()[0].pred_boxes
    expected = torch.stack([box_iou(b, b) for b in boxes])
    torch.testing.assert_close(pairwise_iou(boxes), expected)
    points = torch.tensor([[[3.0, 3, 3, 3], [3, 3, 3, 3]]])
    assert torch.equal(pairwise_iou(points), torch.zeros(1, 2, 2))


def test_learns_what_no_threshold_can() -> None:
    """Two boxes of one IoU: duplicates where their features are alike, else two objects."""
    torch.manual_seed(0)
    module = PairwiseRescoring(in_channels=8, num_candidates=4)
    boxes = torch.tensor([[[0.0, 0, 20, 20], [2, 2, 22, 22]]])

    def rescored(alike: bool) -> Tensor:
        look = torch.randn(1, 8, 1, 1)
        other = look + 0.1 * torch.randn(1, 8, 1, 1) if alike else torch.randn(1, 8, 1, 1)
        predictions = DensePredictions.of(torch.tensor([[[2.0], [1.0]]]), boxes, boxes[0], (1, 1))
        return module(predictions, module.embeddings([look, other])).pred_logits.flatten()

    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for step in range(300):
        target = torch.tensor([1.0, float(step % 2)])
        loss = F.binary_cross_entropy_with_logits(rescored(alike=step % 2 == 0), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        duplicates = torch.stack([rescored(alike=True) for _ in range(50)])
        neighbours = torch.stack([rescored(alike=False) for _ in range(50)])
    assert (duplicates[:, 0] > 0).all() and (neighbours[:, 0] > 0).all()
    assert (duplicates[:, 1] < 0).float().mean() > 0.9
    assert (neighbours[:, 1] > 0).float().mean() > 0.8
