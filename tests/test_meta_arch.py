"""The whole model: odd sizes, awkward batches, switches."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from onenet.checkpoint import load_weights
from onenet.config import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "digits"
HEADS = ["onenet_point_R18", "onenet_fcos_R18_FPN", "onenet_retinanet_R18_FPN"]
RECOMMENDED = "recommended_R18_FPN"


def build(name: str, *opts: str) -> torch.nn.Module:
    return build_model(load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *opts]))


def record(size: tuple[int, int], gt=None) -> dict:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    return {"image": image} if gt is None else {"image": image, "instances": gt}


@pytest.mark.parametrize("name", [*HEADS, RECOMMENDED])
@pytest.mark.parametrize("size", [(1, 1), (31, 33), (37, 101), (64, 64)])
def test_any_image_size(name: str, size: tuple[int, int]) -> None:
    model = build(name).eval()
    with torch.no_grad():
        (output,) = model([record(size)])
    instances = output["instances"]
    assert instances.image_size == size
    boxes = instances.pred_boxes.tensor
    assert (
        (boxes >= 0).all()
        and (boxes[:, 0::2] <= size[1]).all()
        and (boxes[:, 1::2] <= size[0]).all()
    )


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("counts", [(2, 3), (2, 0), (0, 0)])
def test_batches_with_and_without_objects(name: str, counts: tuple[int, int], make_gt) -> None:
    model = build(name).train()
    batch = [
        record(s, make_gt(n, s, 10)) for s, n in zip([(40, 70), (64, 33)], counts, strict=True)
    ]
    losses = model(batch)
    assert set(losses) == {"loss_cls", "loss_l1", "loss_giou"}
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without  # DDP would wait for these for ever


@pytest.mark.parametrize("name", HEADS)
def test_second_pair_leaves_no_trace(name: str, make_gt, tmp_path: Path) -> None:
    """Trained with it, shipped without: weights, graph and results are those of a plain model."""
    many = ("MODEL.ONENET.ONE_TO_MANY.BRANCH", "pair")
    trained, plain = build(name, *many).train(), build(name)
    losses = trained([record((64, 96), make_gt(3, (64, 96), 10))])
    assert set(losses) == {
        *("loss_cls", "loss_l1", "loss_giou"),
        *("loss_cls_many", "loss_l1_many", "loss_giou_many"),
    }
    sum(losses.values()).backward()
    assert not [n for n, p in trained.named_parameters() if p.grad is None]

    trained.eval()
    inputs = [record((64, 96))]
    before = trained(inputs)[0]["instances"]
    torch.save({"model": trained.state_dict()}, tmp_path / "trained.pth")
    trained.remove_training_parts()
    after = trained(inputs)[0]["instances"]
    assert torch.equal(before.scores, after.scores)
    assert list(trained.state_dict()) == list(plain.state_dict())
    # A model that never had it takes the weights, and has the same graph
    load_weights(plain.eval(), str(tmp_path / "trained.pth"))
    assert torch.equal(plain(inputs)[0]["instances"].pred_boxes.tensor, after.pred_boxes.tensor)
    operators = []
    for model in (trained, plain):
        adapter = TracingAdapter(model, [{"image": inputs[0]["image"]}])
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.jit.trace(adapter, adapter.flattened_inputs).inlined_graph
        operators.append([node.kind() for node in graph.nodes()])
    assert operators[0] == operators[1]


@pytest.mark.parametrize("counts", [(2, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("loss", ["focal", "quality"])
@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns_below_the_filter(
    name: str, loss: str, counts: tuple[int, int], make_gt
) -> None:
    head = ("MODEL.ONENET.HEAD.MAX_FILTER_DIM", "16", "MODEL.ONENET.HEAD.RESCORED_CANDIDATES", "50")
    base = ("MODEL.ONENET.ONE_TO_MANY.BRANCH", "base")
    model = build(name, *head, *base, "MODEL.ONENET.LOSS.CLASS_LOSS", loss).train()
    batch = [
        record(s, make_gt(n, s, 10)) for s, n in zip([(40, 70), (64, 33)], counts, strict=True)
    ]
    losses = model(batch)
    assert len(losses) == 6 and all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", HEADS)
def test_only_detections_are_decoded(name: str, monkeypatch) -> None:
    model = build(name).eval()
    decode, counts = model.head._decode, []

    def counting(codes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        counts.append(codes.shape[:2])
        return decode(codes, anchors)

    monkeypatch.setattr(model.head, "_decode", counting)
    with torch.no_grad():
        model([record((64, 96)), record((64, 64))])
    assert counts == [(2, 100)]


@pytest.mark.parametrize("deform", ["False", "True"])
@pytest.mark.parametrize("name", [*HEADS, RECOMMENDED])
def test_channels_last_gives_the_same(name: str, deform: str, make_gt) -> None:
    inputs = [record(s, make_gt(n, s, 10)) for s, n in (((40, 70), 3), ((64, 33), 2))]
    neck = ("MODEL.ONENET.DECONV.DEFORM", deform)
    plain, last = (build(name, "MODEL.ONENET.CHANNELS_LAST", str(x), *neck) for x in (False, True))
    last.load_state_dict(plain.state_dict())
    expected, losses = plain.train()(inputs), last.train()(inputs)
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
    sum(losses.values()).backward()
    with torch.no_grad():
        (a, _), (b, _) = plain.eval()(inputs), last.eval()(inputs)
        features = last.backbone(last.preprocess_image(inputs).tensor)
    torch.testing.assert_close(a["instances"].scores, b["instances"].scores, rtol=1e-3, atol=1e-4)
    weight = last.head.cls_score.weight
    for x in (features[last.head_in_features[0]], weight, weight.grad):
        assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def test_targets_do_not_depend_on_the_padding() -> None:
    """L1 is relative to the image's own size, whatever it is batched with."""
    gt = Instances((40, 70), gt_boxes=Boxes([[5, 5, 30, 35]]), gt_classes=torch.tensor([0]))
    model = build("onenet_fcos_R18_FPN", "MODEL.RESNETS.NORM", "FrozenBN").train()
    model.head.bbox_pred.weight.data.zero_()  # boxes that the padding cannot move
    small, large = record((40, 70), gt), record((64, 128), gt[[]])
    alone, batched = model([small])["loss_l1"], model([small, large])["loss_l1"]
    torch.testing.assert_close(alone, batched)
    predictions = model.head(
        [model.backbone(model.preprocess_image([small]).tensor)[f] for f in model.head_in_features]
    )
    boxes = predictions.pred_boxes
    ((samples, _),) = model.criterion.matcher(predictions, [gt])
    distance = (boxes[0, samples[0]] - gt.gt_boxes.tensor[0]).abs()
    expected = 5 * (distance / torch.tensor([70.0, 40, 70, 40])).sum()
    torch.testing.assert_close(alone, expected)


def test_more_detections_asked_for_than_exist() -> None:
    model = build("onenet_point_R18", "TEST.DETECTIONS_PER_IMAGE", "5000").eval()
    with torch.no_grad():
        (output,) = model([record((32, 32))])
    assert len(output["instances"]) <= 64 * 10


def test_output_size_rescales_boxes() -> None:
    model = build("onenet_fcos_R18_FPN").eval()
    image = record((64, 96))
    with torch.no_grad():
        (plain,), (doubled,) = model([image]), model([{**image, "height": 128, "width": 192}])
    torch.testing.assert_close(
        2 * plain["instances"].pred_boxes.tensor, doubled["instances"].pred_boxes.tensor
    )


def test_nms_is_a_switch() -> None:
    plain = build("onenet_fcos_R18_FPN").eval()
    with_nms = build("onenet_fcos_R18_FPN", "MODEL.ONENET.NMS_TEST", "True").eval()
    assert plain.nms_thresh is None and with_nms.nms_thresh == 0.6
    with_nms.load_state_dict(plain.state_dict())
    image = record((64, 64))
    with torch.no_grad():
        (a,), (b,) = plain([image]), with_nms([image])
    # An untrained model fires everywhere
    assert 0 < len(b["instances"]) < len(a["instances"])


def test_images_of_nan_give_no_detections() -> None:
    model = build("onenet_fcos_R18_FPN").eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.full((3, 64, 64), float("nan"))}])
    assert len(output["instances"]) == 0


def test_training_pictures_go_to_the_storage(make_gt) -> None:
    model = build("onenet_fcos_R18_FPN", "VIS_PERIOD", "1").train()
    with EventStorage() as storage:
        losses = model([record((64, 64), make_gt(2, (64, 64), 10))])
    assert model.training and "loss_cls" in losses
    images = {name: image for name, image, _ in storage._vis_data}
    assert len(images) == 2 and images["assignment"].shape == (3, 384, 384)
    assert all(image.shape[0] == 3 and image.dtype == np.uint8 for image in images.values())


@pytest.mark.gpu
@pytest.mark.parametrize("name", HEADS)
def test_gpu_agrees_with_cpu_and_trains_under_amp(name: str, make_gt) -> None:
    model = build(name).eval()
    image = record((64, 96))
    with torch.no_grad():
        (on_cpu,) = model([image])
        (on_gpu,) = model.cuda()([image])
    torch.testing.assert_close(
        on_cpu["instances"].scores, on_gpu["instances"].scores.cpu(), rtol=1e-2, atol=1e-3
    )
    with torch.autocast("cuda"):
        losses = model.train()([record((64, 96), make_gt(3, (64, 96), 10))])
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
