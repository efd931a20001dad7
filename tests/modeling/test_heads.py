"""Every registered head: shapes, order of the samples, initial score, gradients."""

import copy
import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch._subclasses import FakeTensorMode

from onenet.config import add_onenet_config
from onenet.modeling.heads import ONENET_HEAD_REGISTRY, build_head, dense_head
from onenet.utils.errors import ConfigError

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


def test_offset_of_the_fcos_head() -> None:
    for offset in (0.0, 0.25, 0.5):
        head, _ = tiny_head("FCOSHead", "HEAD.OFFSET", offset)
        anchors = head.anchors([torch.zeros(1, 1, 2, 3)] * 2)
        assert ((anchors[0, :2] + anchors[0, 2:]) / 2).tolist() == [8 * offset] * 2
    for offset in (-0.5, 1.0):
        with pytest.raises(ConfigError, match=f"HEAD.OFFSET is {offset}; give a fraction"):
            tiny_head("FCOSHead", "HEAD.OFFSET", offset)


@pytest.mark.parametrize("name", ["FCOSHead", "RetinaNetHead"])
def test_bias_in_the_towers(name: str) -> None:
    assert tiny_head(name)[0].cls_subnet[0].bias is None
    head, _ = tiny_head(name, "HEAD.CONV_BIAS", True)
    assert not any(tower[0].bias.any() for tower in (head.cls_subnet, head.bbox_subnet))


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
    monkeypatch.setattr(dense_head, "_MAX_SIZES", 2)
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


@pytest.mark.parametrize("name", HEADS)
def test_detached(name: str) -> None:
    head, features = tiny_head(name)
    out = head(features)
    detached = out.detach()
    samples = torch.randint(len(out.anchors), (2, 7))
    for ours, theirs in (
        (detached.pred_logits, out.pred_logits),
        (detached.boxes.at(samples), out.boxes.at(samples)),
        (detached.pred_boxes, out.pred_boxes),
    ):
        assert torch.equal(ours, theirs) and theirs.requires_grad and not ours.requires_grad
    assert detached.anchors is out.anchors and detached.level_sizes == out.level_sizes
