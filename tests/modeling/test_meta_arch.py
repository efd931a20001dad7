"""The whole model: odd sizes, awkward batches, switches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from onenet.engine import load_config
from onenet.engine.training_pictures import put_pictures
from onenet.modeling.postprocess import select_top_k, to_instances

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "digits"
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


RESCORES = ("MODEL.ONENET.RESCORING.CANDIDATES", "50")
MANY = ("MODEL.ONENET.ONE_TO_MANY.CENTER_RADIUS", "1.5")


@pytest.mark.parametrize("counts", [(2, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize(
    ("name", "opts"), [*((name, RESCORES) for name in HEADS), (HEADS[1], RESCORES + MANY)]
)
def test_rescoring_learns_by_its_own_loss_and_the_rest_by_the_others(
    name: str, opts: tuple[str, ...], counts: tuple[int, int], make_gt
) -> None:
    model = build(name, *opts).train()
    batch = [
        record(s, make_gt(n, s, 10)) for s, n in zip([(40, 70), (64, 33)], counts, strict=True)
    ]
    losses = model(batch)
    assert len(losses) == 4 and all(value.isfinite() for value in losses.values())
    names = {name for name, _ in model.named_parameters()}
    own = {name for name in names if name.startswith("rescoring.")}
    assert len(own) == 1

    losses.pop("loss_cls_rescored").backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == own
    assert all(gradients[name].any() for name in own)
    model.zero_grad()
    sum(losses.values()).backward()
    # All of them: DDP would wait for those without
    assert {n for n, p in model.named_parameters() if p.grad is not None} == names - own


def same_detections(a: Instances, b: Instances) -> bool:
    return (
        torch.equal(a.scores, b.scores)
        and torch.equal(a.pred_classes, b.pred_classes)
        and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
    )


@pytest.mark.parametrize("name", HEADS)
def test_rescoring_starts_at_zero_and_its_loss_trains_nothing_else(name: str, make_gt) -> None:
    init = ("MODEL.ONENET.RESCORING.INIT", "zero")
    plain, zero, soft = build(name), build(name, *RESCORES, *init), build(name, *RESCORES)
    for model in (zero, soft):
        keys = model.load_state_dict(plain.state_dict(), strict=False)
        assert keys.missing_keys and all(x.startswith("rescoring.") for x in keys.missing_keys)
    image = record((64, 96))
    with torch.no_grad():
        expected, found, other = (
            model.eval()([image])[0]["instances"] for model in (plain, zero, soft)
        )
    assert same_detections(found, expected) and not same_detections(other, expected)

    zero.train()
    losses = zero([record((64, 96), make_gt(3, (64, 96), 10))])
    own = {name for name, _ in zero.named_parameters() if name.startswith("rescoring.")}
    losses.pop("loss_cls_rescored").backward()
    assert {n for n, p in zero.named_parameters() if p.grad is not None} == own
    zero.zero_grad()
    sum(losses.values()).backward()
    assert {n for n, p in zero.named_parameters() if p.grad is None} == own


def test_one_to_many_training_without_anything_against_duplicates_warns(caplog) -> None:
    for opts in (MANY + RESCORES, (*MANY, "MODEL.ONENET.NMS_TEST", "True"), ()):
        build(HEADS[1], *opts)
    assert "CENTER_RADIUS" not in caplog.text
    build(HEADS[1], *MANY)
    assert "CENTER_RADIUS is above 0" in caplog.text and "RESCORING.CANDIDATES" in caplog.text


def test_rescoring_takes_as_many_as_are_detected_at_least(make_gt) -> None:
    """Of the 100 best, and of the 200 best, in training as in inference."""
    for candidates, count in ((50, 100), (200, 200)):
        model = build(HEADS[1], "MODEL.ONENET.RESCORING.CANDIDATES", str(candidates))
        inputs, taken = [record((64, 96), make_gt(3, (64, 96), 10))], []
        model.rescoring.register_forward_pre_hook(
            lambda _, args, taken=taken: taken.append(args[0].logits.shape)
        )
        model.train()(inputs)
        (output,) = model.eval()(inputs)
        assert taken == [(1, count)] * 2 and len(output["instances"]) == 100


def test_mixed_precision_with_rescoring(make_gt) -> None:
    model = build(RECOMMENDED).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([record((64, 96), make_gt(3, (64, 96), 10))])
    assert "loss_cls_rescored" in losses
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("name", "count"), [*((name, 100) for name in HEADS), (RECOMMENDED, 200)])
def test_only_detections_and_candidates_are_decoded(name: str, count: int, monkeypatch) -> None:
    model = build(name).eval()
    decode, counts = model.head.decode, []

    def counting(codes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        counts.append(codes.shape[:2])
        return decode(codes, anchors)

    monkeypatch.setattr(model.head, "decode", counting)
    with torch.no_grad():
        model([record((64, 96)), record((64, 64))])
    assert counts == [(2, count)]


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


@pytest.mark.parametrize("name", ["onenet_fcos_R18_FPN", RECOMMENDED])
def test_images_of_nan_give_no_detections(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.full((3, 64, 64), float("nan"))}])
    assert len(output["instances"]) == 0


def test_training_pictures_go_to_the_storage(make_gt) -> None:
    model = build("onenet_fcos_R18_FPN").train()
    with EventStorage() as storage:
        put_pictures(model, [record((64, 64), make_gt(2, (64, 64), 10))])
    assert model.training
    images = {name: image for name, image, _ in storage._vis_data}
    assert len(images) == 2 and images["assignment"].shape == (3, 384, 384)
    assert all(image.shape[0] == 3 and image.dtype == np.uint8 for image in images.values())


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*HEADS, RECOMMENDED])
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


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*HEADS, RECOMMENDED])
def test_a_step_never_waits_for_the_gpu_and_inference_once(name: str, make_gt) -> None:
    """Behind the network, with images and objects already there."""
    model = build(name).cuda().train()
    batch = [record((64, 96), make_gt(n, (64, 96), 10).to("cuda")) for n in (3, 0)]
    batch = [{**inputs, "image": inputs["image"].cuda()} for inputs in batch]
    sum(model(batch).values()).backward()  # warms up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(model(batch).values()).backward()
        with torch.no_grad():
            images = model.eval().preprocess_image(batch)
            features = model.backbone(images.tensor)
            predictions = model.head([features[key] for key in model.head_in_features])
            top = select_top_k(predictions, 100, model.rescoring)
            with pytest.raises(RuntimeError, match="synchronizing"):
                to_instances(*top, images.image_sizes)  # looks for NaN, once
    finally:
        torch.cuda.set_sync_debug_mode("default")


class CountOperators(TorchDispatchMode):
    """Counts all that a GPU would have to start: operators but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "most"), [("onenet_fcos_R18_FPN", 35), (RECOMMENDED, 110)])
def test_post_processing_starts_few_operators(name: str, most: int) -> None:
    """FCOS with NMS starts 250 for one image and 1,800 for eight."""
    model = build(name).eval()
    counts = []
    for num_images in (1, 8):
        with torch.no_grad():
            images = model.preprocess_image([record((64, 64)) for _ in range(num_images)])
            features = model.backbone(images.tensor)
            features = [features[key] for key in model.head_in_features]
            predictions = model.head(features)
            with CountOperators() as operators:
                model.forward_inference(images, features, predictions)
        counts.append(operators.count)
    assert counts[0] <= most and counts[1] <= counts[0] + 8, counts
