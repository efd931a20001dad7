"""Every registered head: shapes, order of the samples, initial score, gradients."""

import copy
import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch._subclasses import FakeTensorMode

from onenet.config import add_onenet_config
from onenet.errors import ConfigError
from onenet.heads import ONENET_HEAD_REGISTRY, build_head, parts

HEADS = sorted(name for name, _ in ONENET_HEAD_REGISTRY)


def tiny_head(name: str, *opts: object):
    torch.manual_seed(0)
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.MODEL.ONENET.merge_from_list([*opts])
    cfg.MODEL.ONENET.HEAD.NAME = name
    cfg.MODEL.ONENET.NUM_CLASSES = 3
    cfg.MODEL.ONENET.HEAD.CONV_DIM = 32
    cfg.MODEL.ONENET.HEAD.NUM_CONVS = 1
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 20], [32, 40]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0]]
    strides = [4] if name == "PointHead" else [8, 16]
    shapes = [ShapeSpec(channels=8, stride=stride) for stride in strides]
    features = [torch.randn(2, 8, 64 // stride, 96 // stride) for stride in strides]
    return build_head(cfg, shapes), features


@pytest.mark.parametrize("name", HEADS)
def test_common_output(name: str) -> None:
    head, features = tiny_head(name)
    out = head(features)
    num_samples = sum(out.level_sizes)
    assert len(out.level_sizes) == len(features)
    assert out.pred_logits.shape == (2, num_samples, 3)
    assert out.pred_boxes.shape == (2, num_samples, 4)
    assert out.anchors.shape == (num_samples, 4)
    assert out.pred_boxes.dtype == out.anchors.dtype == torch.float32
    per_location = num_samples / sum(f.shape[2] * f.shape[3] for f in features)
    assert per_location == (4 if name == "RetinaNetHead" else 1)
    assert (out.pred_boxes[..., 2:] >= out.pred_boxes[..., :2]).all()


@pytest.mark.parametrize("name", HEADS)
def test_boxes_of_some_samples(name: str) -> None:
    """They are decoded as when all are, and either way boxes can be trained."""
    head, features = tiny_head(name)
    boxes = head(features).boxes
    samples = torch.randint(len(boxes.anchors), (2, 7))
    with torch.no_grad():  # as a matcher asks for them
        expected = torch.stack([boxes.corners[i, samples[i]] for i in range(2)])
    assert torch.equal(boxes.at(samples), expected)
    assert boxes.corners.requires_grad and boxes.at(samples).requires_grad


@pytest.mark.parametrize("name", HEADS)
def test_initial_score_is_the_prior(name: str) -> None:
    head, features = tiny_head(name)
    scores = head([torch.zeros_like(f) for f in features]).pred_logits.sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", HEADS)
def test_normal_initial_weights(name: str) -> None:
    head, _ = tiny_head(name, "HEAD.INIT_STD", 0.05)
    weights = [m.weight for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    if name == "RetinaNetHead":  # its predictors have 0.01 in any case
        weights = [w for w in weights if w is not head.cls_score.weight]
        weights = [w for w in weights if w is not head.bbox_pred.weight]
    assert weights
    for weight in weights:
        # More than six standard errors of the smallest, which has 576 elements
        assert weight.std().item() == pytest.approx(0.05, rel=0.2)
    with pytest.raises(ConfigError, match=r"HEAD\.INIT_STD is -0\.1; give a standard deviation"):
        tiny_head(name, "HEAD.INIT_STD", -0.1)


@pytest.mark.parametrize("name", ["PointHead", "FCOSHead"])
def test_no_side_of_a_box_starts_dead(name: str) -> None:
    """A distance that starts at zero has no gradient, all over the image."""
    head, features = tiny_head(name)
    out = head(features)
    centers = (out.anchors[:, :2] + out.anchors[:, 2:]) / 2
    ltrb = torch.cat((centers - out.pred_boxes[..., :2], out.pred_boxes[..., 2:] - centers), dim=2)
    assert ((ltrb > 0).float().mean(dim=(0, 1)) > 0.75).all()


@pytest.mark.parametrize("name", HEADS)
def test_a_sample_depends_on_its_own_place(name: str) -> None:
    """Wiggling one pixel of one map moves the samples around it, and only these."""
    head, features = tiny_head(name)
    head.eval()
    for level, stride in enumerate([4] if name == "PointHead" else [8, 16]):
        row, column = 2, 1
        wiggled = [f.clone() for f in features]
        wiggled[level][1, :, row, column] += 5
        before, after = head(features), head(wiggled)
        moved = (before.pred_logits != after.pred_logits).any(dim=2)
        assert not moved[0].any()
        centers = (before.anchors[:, :2] + before.anchors[:, 2:]) / 2
        offset = 0.0 if name == "RetinaNetHead" else 0.5
        here = torch.tensor([column + offset, row + offset]) * stride
        levels = torch.repeat_interleave(
            torch.arange(len(features)), torch.tensor(before.level_sizes)
        )
        at_pixel = (centers == here).all(dim=1) & (levels == level)
        assert at_pixel.any() and moved[1, at_pixel].all()
        # GN spreads a change over the whole map, but not to another level.
        assert (levels[moved[1]] == level).all()


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    head, features = tiny_head(name)
    out = head(features)
    (out.pred_logits.sum() + out.pred_boxes.square().sum()).backward()
    missing = [n for n, p in head.named_parameters() if p.grad is None]
    assert not missing


def test_fcos_and_point_boxes_by_hand() -> None:
    for name, stride, scale in (("PointHead", 4, 1.0), ("FCOSHead", 8, 8.0)):
        head, features = tiny_head(name)
        with torch.no_grad():
            head.bbox_pred.weight.zero_()
            head.bbox_pred.bias.copy_(torch.tensor([1.0, 2.0, 3.0, -4.0]))
        box = head(features).pred_boxes[0, 1]  # row 0, column 1
        x, y = 1.5 * stride, 0.5 * stride
        expected = torch.tensor([x - 1 * scale, y - 2 * scale, x + 3 * scale, y])
        torch.testing.assert_close(box, expected)


def test_retinanet_boxes_by_hand() -> None:
    head, features = tiny_head("RetinaNetHead")
    with torch.no_grad():
        head.bbox_pred.weight.zero_()
        head.bbox_pred.bias.zero_()
        # dw of the first anchor: far beyond the clamp at log(1000 / 16)
        head.bbox_pred.bias[2] = 100.0
    out = head(features)
    torch.testing.assert_close(out.pred_boxes[0, 1:4], out.anchors[1:4])
    width = out.pred_boxes[0, 0, 2] - out.pred_boxes[0, 0, 0]
    anchor_width = 16 / math.sqrt(0.5)
    assert width.item() == pytest.approx(anchor_width * 1000 / 16, rel=1e-4)


def test_boxes_are_float32_under_autocast() -> None:
    head, features = tiny_head("FCOSHead")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(features)
    assert out.pred_boxes.dtype == torch.float32


@pytest.mark.parametrize("name", HEADS)
def test_anchors_are_kept_by_size(name: str, monkeypatch) -> None:
    monkeypatch.setattr(parts, "_MAX_SIZES", 2)
    head, features = tiny_head(name)
    sizes = [
        features,
        [f[:, :, 1:, 1:] for f in features],
        [f.transpose(2, 3) for f in features],
    ]
    expected = [torch.cat([level.tensor for level in head.anchor_generator(x)]) for x in sizes]
    with torch.inference_mode():  # what is kept there, training uses
        head(features)
    for i in (0, 0, 1, 2, 0, 1):
        out = head(sizes[i])
        assert out.anchors.equal(expected[i])
        (out.pred_boxes.sum() + out.pred_logits.sum()).backward()
        assert len(head._anchors) <= 2
    kept = head(features).anchors
    assert head(features).anchors is kept
    with FakeTensorMode(allow_non_fake_inputs=True):
        head.anchors([f[:, :, 2:] for f in features])
    assert type(head.anchors([f[:, :, 2:] for f in features])) is torch.Tensor
    head.anchor_generator = copy.deepcopy(head.anchor_generator)
    head.anchor_generator.offset = 0.25
    assert not head(features).anchors.equal(kept)


def test_unknown_head_is_named() -> None:
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.MODEL.ONENET.HEAD.NAME = "FcosHead"
    with pytest.raises(ConfigError, match=r"HEAD\.NAME is 'FcosHead'.*FCOSHead, PointHead"):
        build_head(cfg, [])


def test_boxes_of_the_retinanet_head_start_near_its_anchors() -> None:
    head, features = tiny_head("RetinaNetHead")
    out = head(features)
    sides = (out.anchors[:, 2:] - out.anchors[:, :2]).repeat(1, 2)
    # About 0.1; with Xavier weights in the predictors 0.7 and more
    assert ((out.pred_boxes - out.anchors) / sides).abs().mean() < 0.2


MANY = ("ONE_TO_MANY.BRANCH", "pair")


@pytest.mark.parametrize("name", HEADS)
def test_second_pair_of_predictors(name: str) -> None:
    plain, features = tiny_head(name)
    head, _ = tiny_head(name, *MANY)
    expected, out = plain(features), head(features)
    assert expected.one_to_many is None
    # It starts as a copy of the first, and leaves that as it is.
    for ours, theirs in ((out, expected), (out.one_to_many, expected)):
        assert torch.equal(ours.pred_logits, theirs.pred_logits)
        assert torch.equal(ours.pred_boxes, theirs.pred_boxes)
        assert torch.equal(ours.anchors, theirs.anchors)
    with torch.no_grad():
        for parameter in head.one_to_many.parameters():
            parameter.add_(1.0)
    changed = head(features)
    assert torch.equal(changed.pred_logits, expected.pred_logits)
    assert not torch.equal(changed.one_to_many.pred_logits, expected.pred_logits)
    assert not torch.equal(changed.one_to_many.pred_boxes, expected.pred_boxes)
    # In inference there is none.
    assert head.eval()(features).one_to_many is None
    more = set(head.state_dict()) - set(plain.state_dict())
    assert more and all(key.startswith("one_to_many.") for key in more)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("stop", [False, True])
def test_whose_gradients_reach_the_features(name: str, stop: bool) -> None:
    head, features = tiny_head(name, *MANY, "ONE_TO_MANY.STOP_GRADIENT", stop)
    features = [feature.requires_grad_() for feature in features]
    out = head(features)

    def reaches(predictions) -> bool:
        loss = predictions.pred_logits.sum() + predictions.pred_boxes.sum()
        grads = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
        return any(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)

    assert reaches(out) != stop
    assert reaches(out.one_to_many)
    (grad,) = torch.autograd.grad(out.pred_logits.sum(), [head.cls_score.weight])
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("name", HEADS)
def test_max_filter_starts_without_effect_and_learns(name: str) -> None:
    plain, features = tiny_head(name)
    head, _ = tiny_head(name, "HEAD.MAX_FILTER_DIM", 16)
    before = head(features)
    assert torch.equal(before.pred_logits, plain(features).pred_logits)
    before.pred_logits.square().sum().backward()
    assert head.max_filter.out.bias.grad.abs().sum() > 0
    torch.nn.init.normal_(head.max_filter.out.weight)
    after = head(features)
    change = after.pred_logits - before.pred_logits
    assert change.abs().sum() > 0
    # Each anchor's own change, the same for all its classes
    torch.testing.assert_close(change, change[..., :1].expand_as(change), rtol=0, atol=1e-5)
    assert torch.equal(after.pred_boxes, before.pred_boxes)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("stop", [False, True])
def test_one_to_many_base_below_the_filter(name: str, stop: bool) -> None:
    plain, features = tiny_head(name)
    opts = ("HEAD.MAX_FILTER_DIM", 16, "ONE_TO_MANY.BRANCH", "base")
    head, _ = tiny_head(name, *opts, "ONE_TO_MANY.STOP_GRADIENT", stop)
    torch.nn.init.normal_(head.max_filter.out.weight)
    out, expected = head(features), plain(features)
    assert torch.equal(out.one_to_many.pred_logits, expected.pred_logits)
    assert not torch.equal(out.pred_logits, expected.pred_logits)
    for predictions in (out, out.one_to_many):
        assert torch.equal(predictions.pred_boxes, expected.pred_boxes)
    weight = head.cls_score.weight
    (grad,) = torch.autograd.grad(out.pred_logits.sum(), [weight], allow_unused=True)
    assert (grad is None) == stop
    head.eval()
    inference = head(features)
    assert inference.one_to_many is None
    assert torch.equal(inference.pred_logits, out.pred_logits)


@pytest.mark.parametrize("name", HEADS)
def test_rescoring_is_the_last_part(name: str) -> None:
    """It takes what the filter gave, and changes the logits alone, as many as it may."""
    opts = ("HEAD.MAX_FILTER_DIM", 16, "ONE_TO_MANY.BRANCH", "base")
    filtered, features = tiny_head(name, *opts)
    head, _ = tiny_head(name, *opts, "HEAD.RESCORED_CANDIDATES", 30)
    for one in (filtered, head):
        torch.manual_seed(0)
        torch.nn.init.normal_(one.max_filter.out.weight)
    before = filtered(features)
    assert torch.equal(head(features).pred_logits, before.pred_logits)
    torch.nn.init.normal_(head.rescoring.out[2].weight)
    after = head(features)
    best = before.pred_logits.flatten(1).topk(30, dim=1).indices
    changed = (after.pred_logits != before.pred_logits).flatten(1)
    assert changed.gather(1, best).all() and changed.sum() == 60
    assert torch.equal(after.pred_boxes, before.pred_boxes)
    assert torch.equal(after.one_to_many.pred_logits, before.one_to_many.pred_logits)
    assert torch.equal(head.eval()(features).pred_logits, after.pred_logits)


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_rescoring_knows_a_sample_by_its_place(name: str) -> None:
    head, features = tiny_head(name, "HEAD.RESCORED_CANDIDATES", 10**6)
    torch.nn.init.normal_(head.rescoring.out[2].weight)
    out = head(features)
    maps = [torch.zeros(2, 16, *f.shape[2:]) for f in features]
    before = head.rescore(out, maps).pred_logits
    row, column = 2, 3
    maps[-1][1, :, row, column] = 1.0
    moved = (head.rescore(out, maps).pred_logits != before).any(dim=2)
    centers = (out.anchors[:, :2] + out.anchors[:, 2:]) / 2
    here = torch.tensor([column, row]) + (0.0 if name == "RetinaNetHead" else 0.5)
    last = torch.arange(len(centers)) >= len(centers) - out.level_sizes[-1]
    here = (centers == here * (4 if name == "PointHead" else 16)).all(dim=1) & last
    assert here.sum() == (4 if name == "RetinaNetHead" else 1)
    assert moved[1, here].all() and not moved[0].any()


@pytest.mark.parametrize("name", HEADS)
def test_no_gradient_passes_the_rescoring_where_it_is_stopped(name: str) -> None:
    opts = ("HEAD.MAX_FILTER_DIM", 16, "HEAD.RESCORED_CANDIDATES", 30, "ONE_TO_MANY.BRANCH", "base")
    head, features = tiny_head(name, *opts, "ONE_TO_MANY.STOP_GRADIENT", True)
    torch.nn.init.normal_(head.rescoring.out[2].weight)
    head(features).pred_logits.sum().backward()
    learning = {n.split(".")[0] for n, p in head.named_parameters() if p.grad is not None}
    assert learning == {"max_filter", "rescoring"}


def test_no_such_branch() -> None:
    with pytest.raises(ConfigError, match="BRANCH is 'tree'; choose '' .*'base'"):
        tiny_head("FCOSHead", "ONE_TO_MANY.BRANCH", "tree")
    with pytest.raises(ConfigError, match="'base' needs a max filter .*MAX_FILTER_DIM"):
        tiny_head("FCOSHead", "ONE_TO_MANY.BRANCH", "base")
