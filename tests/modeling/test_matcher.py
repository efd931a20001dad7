"""Matchers: oracles, properties, and what breaks real implementations."""

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.optimize import linear_sum_assignment

from onenet.modeling.center_sampling import match_centers
from onenet.modeling.costs import MatchingCost
from onenet.modeling.criterion import Criterion
from onenet.modeling.matcher import HungarianMatcher, Matcher, MinCostMatcher
from onenet.structures import DensePredictions, Targets

BOTH = pytest.mark.parametrize("matcher_class", [MinCostMatcher, HungarianMatcher])


def predictions(logits: torch.Tensor, boxes: torch.Tensor) -> DensePredictions:
    return DensePredictions.from_boxes(logits, boxes, boxes[0].detach(), (boxes.shape[1],))


class TableCost:
    """A cost function that looks its values up: object j is told by its x1 coordinate."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = torch.as_tensor(table, dtype=torch.float32)

    def __call__(self, pred_logits, pred_boxes, anchors, gt: Instances) -> torch.Tensor:
        return self.table[:, gt.gt_boxes.tensor[:, 0].long()]


def match_table(matcher_class: type[Matcher], table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    num_samples, num_gt = table.shape
    boxes = torch.arange(num_gt).float()[:, None] + torch.tensor([0.0, 0, 1, 1])
    gt = Instances((8, 8), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(num_gt, dtype=torch.int64))
    matcher = matcher_class(cost=TableCost(table))
    ((samples, objects),) = matcher(
        predictions(torch.zeros(1, num_samples, 1), torch.zeros(1, num_samples, 4)), [gt]
    )
    assert samples.dtype == objects.dtype == torch.int64
    return samples.numpy(), objects.numpy()


def tables(max_samples: int = 9, max_gt: int = 7) -> st.SearchStrategy[np.ndarray]:
    # Small integers, so that ties are the rule
    return st.tuples(st.integers(1, max_samples), st.integers(0, max_gt)).flatmap(
        lambda shape: npst.arrays(np.float32, shape, elements=st.integers(-4, 4).map(float))
    )


@given(tables())
@settings(max_examples=200, deadline=None)
def test_min_cost_takes_a_minimum_of_each_column(table: np.ndarray) -> None:
    samples, objects = match_table(MinCostMatcher, table)
    assert objects.tolist() == list(range(table.shape[1]))
    assert (table[samples, objects] == table.min(axis=0, initial=np.inf)[objects]).all()


@given(tables(), st.integers(1, 16))
@settings(max_examples=300, deadline=None)
def test_hungarian_is_one_to_one_and_optimal(table: np.ndarray, few: int) -> None:
    with mock.patch.object(HungarianMatcher, "few", few):
        samples, objects = match_table(HungarianMatcher, table)
    assert len(samples) == min(table.shape)
    assert len(set(samples.tolist())) == len(samples)
    assert (np.diff(objects) > 0).all()
    best = table[linear_sum_assignment(table)].sum()
    assert table[samples, objects].sum() == pytest.approx(best)


def poison(table: np.ndarray, bad: np.ndarray, data) -> np.ndarray:
    return np.where(bad, data.draw(st.sampled_from([np.nan, np.inf, -np.inf])), table)


@given(tables(), st.data())
@settings(max_examples=100, deadline=None)
def test_min_cost_takes_a_non_finite_cost_as_the_last_resort(table: np.ndarray, data) -> None:
    bad = data.draw(npst.arrays(bool, table.shape))
    samples, objects = match_table(MinCostMatcher, poison(table, bad, data))
    assert (~bad[samples, objects] | bad.all(axis=0)[objects]).all()


@given(tables(), st.data())
@settings(max_examples=200, deadline=None)
def test_hungarian_leaves_out_what_has_no_finite_cost(table: np.ndarray, data) -> None:
    bad = data.draw(npst.arrays(bool, table.shape))
    samples, objects = match_table(HungarianMatcher, poison(table, bad, data))
    assert not bad[samples, objects].any()
    # As many objects as possible, and of those assignments the cheapest.
    large = np.where(bad, 1e4, table)
    best = linear_sum_assignment(large)
    assert len(samples) == (~bad[best]).sum()
    assert table[samples, objects].sum() == pytest.approx(large[best][~bad[best]].sum())


def test_hungarian_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        table = rng.normal(size=(6, 4)).astype(np.float32)
        best = min(
            itertools.permutations(range(6), 4),
            key=lambda p: sum(table[s, j] for j, s in enumerate(p)),
        )
        assert tuple(match_table(HungarianMatcher, table)[0]) == best


@pytest.mark.slow
def test_hungarian_equals_scipy_on_many_problems(monkeypatch) -> None:
    rng = np.random.default_rng(1)
    few = HungarianMatcher.few
    for i in range(5000):
        monkeypatch.setattr(HungarianMatcher, "few", (few, 2)[i % 2])
        shape = rng.integers(1, 60), rng.integers(0, 40)  # more objects than samples too
        table = rng.normal(size=shape) if rng.random() < 0.5 else rng.integers(0, 5, size=shape)
        table = table.astype(np.float32)
        if rng.random() < 0.3:  # duplicate objects
            table = table[:, rng.integers(0, shape[1], size=shape[1])] if shape[1] else table
        infinite = rng.random(shape) < rng.choice([0.0, 0.0, 0.3, 0.9])
        samples, objects = match_table(HungarianMatcher, np.where(infinite, np.inf, table))
        assert len(set(samples.tolist())) == len(samples) and (np.diff(objects) > 0).all()
        large = np.where(infinite, 1e4, table)  # the sums stay exact enough in float64
        best = linear_sum_assignment(large)
        kept = ~infinite[best]
        assert not infinite[samples, objects].any() and len(samples) == kept.sum()
        ours = table[samples, objects].sum(dtype=np.float64)
        assert ours == pytest.approx(large[best][kept].sum(dtype=np.float64), abs=1e-5)


@BOTH
def test_one_image_as_in_a_batch(matcher_class: type[Matcher], make_gt) -> None:
    batch = predictions(torch.randn(2, 20, 5), make_gt(40).gt_boxes.tensor.view(2, 20, 4))
    gt = [make_gt(4), make_gt(7)]
    matcher = matcher_class()
    for i, pairs in enumerate(matcher(batch, gt)):
        one = predictions(batch.pred_logits[i : i + 1], batch.pred_boxes[i : i + 1])
        (alone,) = matcher(one, [gt[i]])
        assert all(torch.equal(a, b) for a, b in zip(pairs, alone, strict=True))


def test_hungarian_waits_for_the_device_once_a_batch(make_gt, monkeypatch) -> None:
    transfers = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: transfers.append(x.shape) or cpu(x))
    counts = [3, 0, 5]
    batch = predictions(torch.randn(3, 20, 5), make_gt(60).gt_boxes.tensor.view(3, 20, 4))
    matches = HungarianMatcher()(batch, [make_gt(n) for n in counts])
    assert [len(samples) for samples, _ in matches] == counts
    assert transfers == [(2, 3 * 3 + 5 * 5)]  # costs and samples, n for each of n objects


@BOTH
def test_two_objects_that_want_one_sample(matcher_class: type[Matcher]) -> None:
    table = np.array([[0.0, 0.0], [1.0, 2.0]])
    samples, _ = match_table(matcher_class, table)
    # min-cost: a collision; Hungarian: object 0 gives way, since that costs less
    assert samples.tolist() == ([0, 0] if matcher_class is MinCostMatcher else [1, 0])


@BOTH
def test_objects_without_samples_enough(matcher_class: type[Matcher]) -> None:
    samples, objects = match_table(matcher_class, np.array([[3.0, 1.0, 2.0]]))
    expected = ([0, 0, 0], [0, 1, 2]) if matcher_class is MinCostMatcher else ([0], [1])
    assert (samples.tolist(), objects.tolist()) == expected


@BOTH
def test_empty_image_in_a_batch(matcher_class: type[Matcher], make_gt) -> None:
    matches = matcher_class()(
        predictions(torch.randn(3, 20, 5), make_gt(60).gt_boxes.tensor.view(3, 20, 4)),
        [make_gt(0), make_gt(3), make_gt(0)],
    )
    assert [len(s) for s, _ in matches] == [0, 3, 0]


@BOTH
def test_zero_area_boxes(matcher_class: type[Matcher]) -> None:
    point = [5.0, 5.0, 5.0, 5.0]
    gt = Instances((10, 10), gt_boxes=Boxes([point, [1, 1, 4, 4]]), gt_classes=torch.tensor([0, 0]))
    boxes = torch.tensor([[point, [1.0, 1, 4, 4], [4.0, 4, 6, 6]]])
    ((samples, _),) = matcher_class()(predictions(torch.zeros(1, 3, 1), boxes), [gt])
    # The GIoU of two coincident points is 0/0: the nearest real box is taken instead.
    assert samples.tolist() == [2, 1]


@BOTH
def test_predictions_of_nan_and_inf_are_not_chosen(matcher_class: type[Matcher], make_gt) -> None:
    gt = make_gt(3)
    logits, boxes = torch.randn(1, 12, 5), make_gt(12).gt_boxes.tensor[None]
    logits[0, :4] = float("nan")
    boxes[0, 4:6, 2] = float("inf")
    boxes[0, 6:8] = float("nan")
    ((samples, _),) = matcher_class()(predictions(logits, boxes), [gt])
    assert (samples >= 8).all()
    all_bad = torch.full_like(logits, float("nan"))
    matcher_class()(predictions(all_bad, boxes), [gt])  # no crash


@BOTH
def test_chunks_change_nothing(matcher_class: type[Matcher], make_gt, monkeypatch) -> None:
    logits, boxes, gt = torch.randn(1, 50, 5), make_gt(50).gt_boxes.tensor[None], [make_gt(23)]
    whole = matcher_class()(predictions(logits, boxes), gt)
    monkeypatch.setattr(Matcher, "max_chunk_elements", 150)  # 3 objects at a time
    chunked = matcher_class()(predictions(logits, boxes), gt)
    assert torch.equal(whole[0][0], chunked[0][0])


@BOTH
def test_autocast_and_gradients_do_not_reach_the_cost(matcher_class, make_gt) -> None:
    logits, boxes = torch.randn(1, 40, 5, requires_grad=True), make_gt(40).gt_boxes.tensor[None]
    gt = [make_gt(5)]
    plain = matcher_class()(predictions(logits, boxes), gt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = MatchingCost()(logits[0], boxes[0], boxes[0], gt[0])
        cast = matcher_class()(predictions(logits, boxes), gt)
    assert cost.dtype == torch.float32
    assert torch.equal(plain[0][0], cast[0][0])


LARGE_CROWD = """
import sys, torch
import onenet.modeling.matcher
from onenet.structures import DensePredictions
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances

def boxes(n):
    top_left = torch.rand(n, 2) * 800
    return torch.cat((top_left, top_left + 1 + torch.rand(n, 2) * 200), dim=1)

def peak_kib():  # of this process alone; ru_maxrss remembers the parent's
    (line,) = [x for x in open("/proc/self/status") if x.startswith("VmHWM")]
    return int(line.split()[1])

gt = Instances((1000, 1000), gt_boxes=Boxes(boxes(500)), gt_classes=torch.zeros(500).long())
logits, boxes = torch.randn(1, 200_000, 1), boxes(200_000)[None]
matcher = getattr(onenet.modeling.matcher, sys.argv[1])()
before = peak_kib()
((samples, _),) = matcher(DensePredictions.from_boxes(logits, boxes, boxes[0], ()), [gt])
assert len(samples) == 500
print(peak_kib() - before)
"""


@BOTH
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_large_crowd_fits_in_memory(matcher_class: type[Matcher]) -> None:
    command = [sys.executable, "-W", "ignore", "-c", LARGE_CROWD, matcher_class.__name__]
    # glibc then gives every large block back as soon as it is freed. Otherwise it keeps freed ones
    # in its heap, and the peak tells of its habits (0.3 to 1.1 GiB seen) and not of the tensors.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, check=True, capture_output=True, env=environment)
    extra_mib = int(done.stdout) / 1024
    assert extra_mib < 512, f"{extra_mib:.0f} MiB of extra memory"


def grid(width: int, height: int, strides: list[int]) -> DensePredictions:
    """Predictions, of two images, at the centres of the cells of some levels."""
    anchors = [
        (stride * column, stride * row, stride * (column + 1), stride * (row + 1))
        for stride in strides
        for row in range(height // stride)
        for column in range(width // stride)
    ]
    sizes = tuple((width // stride) * (height // stride) for stride in strides)
    nothing = torch.zeros(2, len(anchors), 4)
    return DensePredictions.from_boxes(nothing, nothing, torch.tensor(anchors).float(), sizes)


def objects(boxes: list[list[float]]) -> Instances:
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    return Instances((64, 64), gt_boxes=Boxes(torch.tensor(boxes).view(-1, 4)), gt_classes=classes)


def centers_of(
    batch: DensePredictions, images: list[list[list[float]]], radius: float
) -> list[dict[int, int]]:
    """Sample -> object of its image, for each image."""
    targets = Targets.from_instances([objects(boxes) for boxes in images], torch.device("cpu"))
    matches = match_centers(batch, targets, radius)
    assert all(part.dtype == torch.int64 for part in matches)
    found: list[dict[int, int]] = [{} for _ in images]
    starts = np.cumsum([0, *map(len, images)])
    for image, sample, index in zip(*(part.tolist() for part in matches), strict=True):
        assert sample not in found[image] and starts[image] <= index < starts[image + 1]
        found[image][sample] = index - int(starts[image])
    return found


def centers_by_loop(
    batch: DensePredictions, boxes: list[list[float]], radius: float
) -> dict[int, int]:
    """FCOS's rule for an image, location by location."""
    places = [((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1) for x1, y1, x2, y2 in batch.anchors.tolist()]
    strides = [stride for *_, stride in places]
    wanted: dict[int, list[tuple[float, int]]] = {}
    for j, (x1, y1, x2, y2) in enumerate(boxes):
        size, cx, cy = max(x2 - x1, y2 - y1) / 2, (x1 + x2) / 2, (y1 + y2) / 2
        near, distances = [], {}

        def serves(size: float, stride: float) -> bool:
            too_small = size <= 4 * stride and stride != min(strides)
            return not too_small and (size <= 8 * stride or stride == max(strides))

        for i, (x, y, stride) in enumerate(places):
            distance = max(abs(x - cx), abs(y - cy))
            if serves(size, stride):
                distances[i] = distance
            inside = x1 < x < x2 and y1 < y < y2
            farthest = max(x - x1, x2 - x, y - y1, y2 - y)
            if serves(farthest, stride) and inside and distance < radius * stride:
                near.append(i)
        nearest = [i for i, d in distances.items() if d == min(distances.values())]
        for i in near or nearest:
            wanted.setdefault(i, []).append(((x2 - x1) * (y2 - y1), j))
    return {i: min(areas)[1] for i, areas in wanted.items()}


HALVES = st.integers(-10, 40).map(lambda x: x / 2)  # so that locations lie on edges, too
CROWDS = st.lists(
    st.tuples(HALVES, HALVES, st.integers(0, 80), st.integers(0, 80)).map(
        lambda b: [b[0], b[1], b[0] + b[2] / 2, b[1] + b[3] / 2]
    ),
    max_size=5,
)


@given(st.tuples(CROWDS, CROWDS), st.sampled_from([0.5, 1.0, 1.5, 4.0]))
@settings(max_examples=150, deadline=None)
def test_centers_equal_a_loop(
    images: tuple[list[list[float]], list[list[float]]], radius: float
) -> None:
    batch = grid(20, 12, [1, 2, 4])
    expected = [centers_by_loop(batch, boxes, radius) for boxes in images]
    assert centers_of(batch, list(images), radius) == expected


def test_centers_by_hand() -> None:
    batch = grid(20, 20, [4])  # locations at 2, 6, 10, 14, 18
    large, small, tiny = [0.0, 0, 20, 20], [8.0, 8, 14, 12], [2.5, 2.5, 3.5, 3.5]
    around = {6, 7, 8, 11, 12, 13, 16, 17, 18}
    assert centers_of(batch, [[large], []], 1.5) == [dict.fromkeys(around, 0), {}]
    # The smaller object takes the one location that both want: 14 is no more inside of it
    (found, _) = centers_of(batch, [[large, small], []], 1.5)
    assert found == {**dict.fromkeys(around, 0), 12: 1}
    # Others lie a whole stride away, so that it leaves the larger one none
    assert centers_of(batch, [[], [large, small]], 1.0) == [{}, {12: 1}]
    # No location is inside: the nearest
    assert centers_of(batch, [[tiny], [small, tiny]], 1.5) == [{0: 0}, {12: 0, 0: 1}]
    assert centers_of(batch, [[], []], 1.5) == [{}, {}]


@pytest.mark.parametrize(
    ("side", "levels"), [(1, {0}), (14, {0}), (15, {0, 1}), (17, {1}), (30, {1, 2}), (1000, {2})]
)
def test_centers_are_on_the_levels_of_the_size(side: float, levels: set[int]) -> None:
    batch = grid(40, 24, [1, 2, 4])
    ((*samples,), _) = centers_of(batch, [[[20 - side / 2, 9, 20 + side / 2, 13]], []], 1.5)
    ends = np.cumsum(batch.level_sizes)
    assert set(np.searchsorted(ends, samples, side="right")) == levels


def test_centers_are_those_of_detectron2_s_fcos() -> None:
    """Where an object has any there; no location here has a side 4 or 8 strides away, exactly."""
    batch = grid(256, 192, [8, 16, 32])
    fcos = SimpleNamespace(center_sampling_radius=1.5, num_classes=1)
    fcos._match_anchors = functools.partial(FCOS._match_anchors, fcos)
    anchors = [Boxes(level) for level in batch.anchors.split(batch.level_sizes)]
    common = 0
    for _ in range(20):
        corner = torch.rand(12, 2) * 120
        boxes = torch.cat((corner, corner + 4 + torch.rand(12, 2) * 100), dim=1) + 0.013
        labels, _ = FCOS.label_anchors(fcos, anchors, [objects(boxes.tolist())])
        theirs = set((labels[0] == 0).nonzero().flatten().tolist())
        found, _ = centers_of(batch, [boxes.tolist(), []], 1.5)
        with_none = {j for j in found.values() if list(found.values()).count(j) == 1}
        assert theirs <= set(found)
        assert {found[i] for i in set(found) - theirs} <= with_none
        common += len(theirs)
    assert common > 500


@pytest.mark.gpu
def test_centers_on_a_gpu_are_those_of_the_cpu(make_gt) -> None:
    batch, gts = grid(128, 96, [2, 4, 8]), [make_gt(12), make_gt(0)]
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    expected = match_centers(batch, Targets.from_instances(gts, cpu), 1.5)
    parts = (x.cuda() for x in (batch.pred_logits, batch.pred_boxes, batch.anchors))
    on_gpu = DensePredictions.from_boxes(*parts, batch.level_sizes)
    found = match_centers(on_gpu, Targets.from_instances([gt.to("cuda") for gt in gts], cuda), 1.5)
    assert len(expected.objects) > 12
    assert [x.tolist() for x in found] == [x.tolist() for x in expected]


def test_costs_of_very_different_size_come_to_an_end() -> None:
    rng = np.random.default_rng(3)
    table = (rng.normal(size=(200, 60)) * 10 ** rng.uniform(0, 16, 60)).astype(np.float32)
    samples, objects = match_table(HungarianMatcher, table)
    best = table[linear_sum_assignment(table)].sum(dtype=np.float64)
    assert table[samples, objects].sum(dtype=np.float64) == pytest.approx(best)


def test_a_cost_with_a_call_of_its_own_is_called(make_gt) -> None:
    class Mine(MatchingCost):
        def __call__(self, pred_logits, pred_boxes, anchors, gt):
            return (torch.arange(len(pred_logits)) != 7).float()[:, None].expand(-1, len(gt))

    out = predictions(torch.randn(1, 20, 5), make_gt(20).gt_boxes.tensor[None])
    ((samples, _),) = MinCostMatcher(cost=Mine())(out, [make_gt(3)])
    assert samples.tolist() == [7, 7, 7]


def test_an_object_without_any_sample_is_an_error(make_gt) -> None:
    with pytest.raises(ValueError, match="2 objects are to be matched, but there are no samples"):
        MinCostMatcher()(predictions(torch.zeros(1, 0, 3), torch.zeros(1, 0, 4)), [make_gt(2)])


def test_no_samples_and_no_objects() -> None:
    out = predictions(torch.zeros(2, 0, 5), torch.zeros(2, 0, 4))
    none = Instances((8, 8), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())
    for matcher in (MinCostMatcher(), HungarianMatcher()):
        assert [len(samples) for samples, _ in matcher(out, [none, none])] == [0, 0]


def test_the_readmes_example_trains(repo_root: Path, make_gt) -> None:
    text = (repo_root / "projects" / "OneNet" / "README.md").read_text(encoding="utf-8")
    example = next(x for x in text.split("```python")[1:] if "RandomMatcher" in x).split("```")[0]
    names: dict = {}
    exec(example, names)
    out = predictions(torch.randn(2, 20, 5), make_gt(40).gt_boxes.tensor.view(2, 20, 4))
    losses = Criterion(matcher=names["RandomMatcher"]())(out, [make_gt(3), make_gt(0)])
    assert all(loss.isfinite() for loss in losses.values())


def test_an_object_that_no_level_serves_gets_no_center_samples() -> None:
    """Levels of strides 1 and 4 leave out half sides from 8 to 16."""
    batch = grid(32, 32, [1, 4])
    gts = [Instances((32, 32), gt_boxes=Boxes(torch.tensor([[4.0, 4, 24, 24]])))] * 2
    for gt in gts:
        gt.gt_classes = torch.zeros(1, dtype=torch.int64)
    matches = match_centers(batch, Targets.from_instances(gts, torch.device("cpu")), 1.5)
    assert all(len(part) == 0 for part in matches)
