"""The original implementation's outputs (tests/data/golden, or the folder ONENET_GOLDEN names).

Every file in the folder is read, by the kind that its name begins with; sizes and settings come
from the file. The ``crowd_*`` files are read by tests/evaluation/test_crowdhuman.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from onenet.checkpoint.convert import convert_original
from onenet.modeling.backbone import DeconvNeck
from onenet.modeling.criterion import Criterion
from onenet.modeling.heads import FCOSHead, PointHead, RetinaNetHead
from onenet.modeling.matcher import HungarianMatcher, MinCostMatcher
from onenet.modeling.postprocess import select_top_k
from onenet.structures import DensePredictions

FOLDER = Path(os.getenv("ONENET_GOLDEN", Path(__file__).parent / "data" / "golden"))
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
KINDS = ("matching_", "head_", "topk")
WITHOUT_TEST = ("crowd_", "README")

State = dict[str, Tensor]


def files_of(kind: str) -> list[Path]:
    return sorted(FOLDER.glob(f"{kind}*.npz"))


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as data:
        return {key: torch.from_numpy(np.asarray(data[key])) for key in data.files if key != "meta"}


def load_meta(path: Path) -> dict:
    with np.load(path) as data:
        return json.loads(str(data["meta"]))


def test_every_file_has_a_test() -> None:
    assert FOLDER.is_dir(), f"ONENET_GOLDEN: there is no folder {FOLDER}"
    names = [p.name for p in FOLDER.iterdir() if not p.name.startswith(WITHOUT_TEST)]
    unknown = [n for n in names if not (n.startswith(KINDS) and n.endswith(".npz"))]
    assert not unknown, f"no test reads {unknown}"
    assert all(files_of(kind) for kind in KINDS)


@pytest.mark.parametrize("path", files_of("matching_"), ids=lambda p: p.stem)
@pytest.mark.parametrize("name", ["min_cost", "hungarian"])
def test_matching(path: Path, name: str) -> None:
    matcher = {"min_cost": MinCostMatcher, "hungarian": HungarianMatcher}[name]()
    data = load(path)
    image_size = tuple(data["image_size_hw"].tolist())
    gt_instances = [
        Instances(
            image_size,
            gt_boxes=Boxes(data[f"gt_boxes_{i}"]),
            gt_classes=data[f"gt_classes_{i}"],
        )
        for i in range(len(data["logits"]))
    ]
    assert [len(gt) for gt in gt_instances] == data["num_gt"].tolist()
    predictions = DensePredictions.from_boxes(data["logits"], data["boxes"], data["boxes"][0], ())
    matches = matcher(predictions, gt_instances)
    for i, (samples, gt_indices) in enumerate(matches):
        assert gt_indices.tolist() == list(range(len(gt_instances[i])))
        assert samples.tolist() == data[f"{name}_pred_{i}"].tolist()

    if f"{name}_loss_ce" not in data:
        assert not any(map(len, gt_instances)), "only a batch without objects has no losses"
        return
    criterion = Criterion(matcher=matcher, class_weight=1.0, l1_weight=1.0, giou_weight=1.0)
    losses = criterion(predictions, gt_instances)
    expected = {"loss_l1": "bbox", "loss_giou": "giou"}
    if not collides_across_classes(matches, gt_instances):
        expected["loss_cls"] = "ce"
    for ours, original in expected.items():
        reference = data[f"{name}_loss_{original}"].to(losses[ours].dtype)
        torch.testing.assert_close(losses[ours], reference, **TOLERANCE)


def collides_across_classes(matches, gt_instances: list[Instances]) -> bool:
    """Whether one sample is matched to objects of two classes: there the original's class loss
    depends on the order of writes, and ours trains both classes."""
    for (samples, gt_indices), gt in zip(matches, gt_instances, strict=True):
        classes: dict[int, set[int]] = {}
        for sample, cls in zip(samples.tolist(), gt.gt_classes[gt_indices].tolist(), strict=True):
            classes.setdefault(sample, set()).add(cls)
        if any(len(c) > 1 for c in classes.values()):
            return True
    return False


@pytest.mark.parametrize("path", files_of("topk"), ids=lambda p: p.stem)
def test_top_k(path: Path) -> None:
    data = load(path)
    samples = data["boxes"].shape[1]
    predictions = DensePredictions.from_boxes(
        data["logits"], data["boxes"], data["boxes"][0], (samples,)
    )
    scores, classes, boxes = select_top_k(predictions, int(data["k"]))
    torch.testing.assert_close(scores, data["scores"], **TOLERANCE)
    assert torch.equal(classes, data["classes"])
    torch.testing.assert_close(boxes, data["pred_boxes"], **TOLERANCE)


@pytest.mark.parametrize("path", files_of("head_"), ids=lambda p: p.stem)
def test_head(path: Path) -> None:
    data, meta = load(path), load_meta(path)
    state = {k.removeprefix("param/"): v for k, v in data.items() if k.startswith("param/")}
    num_features = sum(key.startswith("feature/") for key in data)
    features = [data[f"feature/{i}"] for i in range(num_features)]
    kind = path.stem.split("_")[1]
    head, features = {"point": point, "fcos": fcos, "retinanet": retinanet}[kind](
        state, meta, features
    )
    with torch.no_grad():
        out = head.eval()(features)

    torch.testing.assert_close(out.pred_logits, samples_last(data["out/logits"]), **TOLERANCE)
    # In pixels of boxes up to 1,000 wide: how a convolution rounds depends on its threads.
    torch.testing.assert_close(
        out.pred_boxes, samples_last(data["out/boxes"]), rtol=1e-5, atol=2e-3
    )
    centers = (out.anchors[:, :2] + out.anchors[:, 2:]) / 2
    if "out/anchors" in data:
        torch.testing.assert_close(out.anchors, samples_last(data["out/anchors"])[0], **TOLERANCE)
    if "out/locations" in data:
        torch.testing.assert_close(centers, samples_last(data["out/locations"])[0], **TOLERANCE)
    if "out/levels" in data:
        levels = samples_last(data["out/levels"])[0, :, 0].long()
        _, counts = levels.unique_consecutive(return_counts=True)
        assert tuple(counts.tolist()) == out.level_sizes


def samples_last(x: Tensor) -> Tensor:
    """(B, C, H, W) or (B, C, M) to (B, M, C)."""
    return x.flatten(2).transpose(1, 2)


def fcos(state: State, meta: dict, features: list[Tensor]) -> tuple[nn.Module, list[Tensor]]:
    head = FCOSHead(
        input_shape=[ShapeSpec(channels=meta["fpn_channels"], stride=s) for s in meta["strides"]],
        num_classes=meta["num_classes"],
        num_convs=meta["num_conv"],
        conv_dim=meta["conv_channels"],
        norm=meta["norm"],
    )
    head.load_state_dict(converted(state, "head."))
    return head, features


def retinanet(state: State, meta: dict, features: list[Tensor]) -> tuple[nn.Module, list[Tensor]]:
    head = RetinaNetHead(
        input_shape=[ShapeSpec(channels=meta["fpn_channels"], stride=s) for s in meta["strides"]],
        num_classes=meta["num_classes"],
        num_convs=meta["num_conv"],
        conv_dim=meta["conv_channels"],
        anchor_generator=DefaultAnchorGenerator(
            sizes=meta["anchor_sizes"],
            aspect_ratios=meta["aspect_ratios"],
            strides=meta["strides"],
            offset=meta["anchor_offset"],
        ),
    )
    head.load_state_dict(converted(state, "head."))
    return head, features


def converted(state: State, prefix: str) -> State:
    """The original's head under our names: the part of the model that the prefix names."""
    conversion = convert_original({f"head.{key}": value for key, value in state.items()})
    ours = conversion.state.items()
    return {key.removeprefix(prefix): value for key, value in ours if key.startswith(prefix)}


def point(state: State, meta: dict, features: list[Tensor]) -> tuple[nn.Module, list[Tensor]]:
    strides, channels = meta["strides"], meta["deconv_channels"][1:]
    shapes = [
        ShapeSpec(channels=f.shape[1], stride=s) for f, s in zip(features, strides, strict=True)
    ]
    neck = DeconvNeck(shapes[::-1], channels, deform=meta["dcn"], norm="BN")
    feature = ShapeSpec(channels=channels[-1], stride=strides[0])
    head = PointHead(
        input_shape=[feature],
        num_classes=meta["num_classes"],
        conv_dim=state["feat1.weight"].shape[0],
    )
    neck.load_state_dict(converted(state, "backbone.neck."))
    head.load_state_dict(converted(state, "head."))
    with torch.no_grad():
        return head, [neck.eval()(features[::-1])]
