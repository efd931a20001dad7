"""Top-k and the conversion to Instances."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onenet.modeling.postprocess import select_top_k, to_instances
from onenet.structures import DensePredictions


def predictions(logits: torch.Tensor, boxes: torch.Tensor) -> DensePredictions:
    return DensePredictions.from_boxes(logits, boxes, boxes[0], (boxes.shape[1],))


CLASSES = st.sampled_from([1, 2, 5, 16, 30])  # few and many are ranked in two ways


@given(st.integers(1, 30), CLASSES, st.integers(1, 40), st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_top_k_equals_sorting_everything(
    num_samples: int, num_classes: int, k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_samples, num_classes, generator=generator)
    boxes = torch.rand(2, num_samples, 4, generator=generator)
    scores, classes, top_boxes = select_top_k(predictions(logits, boxes), k)
    for image in range(2):
        pairs = sorted(
            (
                (logits[image, m, c].item(), m, c)
                for m in range(num_samples)
                for c in range(num_classes)
            ),
            reverse=True,
        )[:k]
        expected_scores = torch.tensor([p[0] for p in pairs]).sigmoid()
        torch.testing.assert_close(scores[image], expected_scores)
        assert classes[image].tolist() == [p[2] for p in pairs]
        torch.testing.assert_close(top_boxes[image], boxes[image, [p[1] for p in pairs]])


def test_ranking_survives_saturation() -> None:
    # The sigmoid of both is 1.0 in float32
    logits = torch.tensor([[[20.0], [30.0]]])
    _, _, boxes = select_top_k(predictions(logits, torch.arange(8.0).view(1, 2, 4)), 1)
    assert boxes[0, 0, 0] == 4.0


@pytest.mark.parametrize("num_classes", [1, 40])
def test_nan_ranks_last(num_classes: int) -> None:
    logits = torch.full((1, 4, num_classes), float("nan"))
    logits[0, 1, 0], logits[0, 3, -1] = -2.0, -3.0
    scores, classes, _ = select_top_k(predictions(logits, torch.zeros(1, 4, 4)), 3)
    torch.testing.assert_close(scores, torch.tensor([[-2.0, -3.0, float("-inf")]]).sigmoid())
    assert classes[0, :2].tolist() == [0, num_classes - 1]


def test_nan_in_one_image_of_several_ranks_last() -> None:
    logits = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    logits[1, 7] = float("nan")
    scores, _, _ = select_top_k(predictions(logits, torch.zeros(3, 50, 4)), 60)
    expected = logits.nan_to_num(nan=float("-inf")).flatten(1).sort(descending=True).values
    torch.testing.assert_close(scores, expected[:, :60].sigmoid())


def test_nms_is_class_wise_and_off_by_default() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    classes = torch.tensor([[0, 0, 1, 0]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]]])
    top = (scores, classes, boxes, [(64, 64)])
    assert len(to_instances(*top)[0]) == 4
    (kept,) = to_instances(*top, nms_thresh=0.6)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert kept.pred_classes.tolist() == [0, 1, 0] and kept.image_size == (64, 64)
    assert len(to_instances(*top, nms_thresh=0.95)[0]) == 4


@pytest.mark.parametrize("nms_thresh", [None, 0.6])
def test_non_finite_detections_are_dropped(nms_thresh: float | None) -> None:
    nan, inf = float("nan"), float("inf")
    sound = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    broken = torch.tensor([[0.0, 0, 1, 1], [0, nan, 1, 1], [0, 0, inf, 1]])
    boxes = torch.stack((sound, broken, sound))
    scores = torch.tensor([[0.5, nan, 0.5], [nan, 0.5, 0.5], [0.7, 0.6, 0.5]])
    top = (scores, torch.zeros(3, 3, dtype=torch.int64), boxes, [(8, 8)] * 3)
    one, none, all_of_them = to_instances(*top, nms_thresh)
    assert one.pred_boxes.tensor.equal(sound[[0, 2]])
    assert len(none) == 0
    assert all_of_them.pred_boxes.tensor.equal(sound)


@pytest.mark.parametrize("broken", ["scores", "boxes", "infinities"])
def test_what_is_not_finite_is_found_wherever_it_is(broken: str) -> None:
    inf = float("inf")
    scores, boxes = torch.full((2, 3), 0.5), torch.ones(2, 3, 4)
    if broken == "scores":
        scores[1, 2] = float("nan")
    elif broken == "boxes":
        boxes[1, 2, 3] = inf
    else:
        boxes[1, 2] = torch.tensor([inf, -inf, inf, -inf])
    found = to_instances(scores, torch.zeros(2, 3, dtype=torch.int64), boxes, [(8, 8)] * 2)
    assert [len(image) for image in found] == [3, 2]


def test_many_large_boxes_in_half_precision_are_kept() -> None:
    boxes = torch.full((16, 100, 4), 600.0, dtype=torch.float16)  # their sum would be inf
    with mock.patch("onenet.modeling.postprocess.finite_only", side_effect=AssertionError):
        found = to_instances(boxes[..., 0], torch.zeros(16, 100).long(), boxes, [(8, 8)] * 16)
    assert all(len(image) == 100 for image in found)
