"""Assignments by hand and by brute force, moves, exact weights, and the command-line tool."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

import onenet.modeling.meta_arch
from onenet.checkpoint import load_weights
from onenet.engine import load_config
from onenet.engine.training_pictures import put_pictures
from onenet.evaluation.inspection import (
    compare_assignments,
    inspect_assignment,
    summarize_assignments,
    summarize_moves,
)
from onenet.modeling.matcher import HungarianMatcher, Matcher, MinCostMatcher
from onenet.modeling.rescoring import Rescoring
from onenet.structures import DenseBoxes, DensePredictions
from onenet.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "digits"
LN2 = math.log(2)


def build(name: str = "onenet_fcos_R18_FPN", *opts: str) -> torch.nn.Module:
    cfg = load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *opts])
    return build_model(cfg).eval()


def objects(boxes: list, classes: list, image_size: tuple[int, int] = (16, 16)) -> Instances:
    return Instances(
        image_size,
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def hand_made(matcher: Matcher, predictions: DensePredictions) -> SimpleNamespace:
    """A "model" of two levels, of stride 8 and 16, that predicts the same for every image."""
    return SimpleNamespace(
        preprocess_image=lambda inputs: SimpleNamespace(tensor=None),
        backbone=Backbone(),
        head=lambda features: predictions,
        head_in_features=["fine", "coarse"],
        device=torch.device("cpu"),
        criterion=SimpleNamespace(matcher=matcher),
        rescoring=None,
        max_detections_per_image=1,
    )


class Backbone:
    def __call__(self, images):
        return {"coarse": None, "fine": None}

    def output_shape(self):
        return {"coarse": SimpleNamespace(stride=16), "fine": SimpleNamespace(stride=8)}


@pytest.fixture
def predictions() -> DensePredictions:
    """Of a 16 x 16 image: 2 x 2 samples of stride 8, one of stride 16; two classes, scores 0.5."""
    anchors = [[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16], [0, 0, 16, 16]]
    boxes = [[8, 8, 16, 16], [0, 0, 8, 16], [0, 0, 8, 8], [8, 8, 16, 16], [2, 0, 14, 12]]
    return DensePredictions.from_boxes(
        torch.zeros(1, 5, 2),
        torch.tensor([boxes], dtype=torch.float32),
        torch.tensor(anchors, dtype=torch.float32),
        (4, 1),
    )


def test_every_number_by_hand(predictions) -> None:
    model = hand_made(MinCostMatcher(cost=None), predictions)
    gt = objects([[0, 0, 8, 8], [2, 0, 14, 12]], [1, 0])
    first, second = inspect_assignment(model, {"image": None, "instances": gt})

    # Sample 2 predicts the first object's box, but lies below it
    assert (first.object_index, first.object_class, first.box) == (0, 1, (0, 0, 8, 8))
    positive, runner_up = first.positive, first.runner_up
    assert (positive.index, positive.level, positive.stride) == (2, 0, 8)
    assert positive.location == (4, 12)
    assert first.offset == (0, 8) and first.distance == 8
    assert first.relative_offset == (0, 1) and first.relative_distance == 1
    # At score 0.5 focal loss has 0.25^2 ln 2 for a positive and 0.75 * 0.25 ln 2 for a negative
    focal = 2 * (0.25 * 0.25 - 0.75 * 0.25) * LN2
    assert positive.terms == pytest.approx({"class": focal, "l1": 0, "giou": -2})
    assert positive.cost == pytest.approx(focal - 2)
    assert (positive.score, positive.iou) == (0.5, 1)
    # Sample 1: one side is off by half of the image, IoU 1/2, and the hull is the larger box
    assert (runner_up.index, runner_up.location) == (1, (12, 4))
    assert runner_up.terms == pytest.approx({"class": focal, "l1": 5 * 0.5, "giou": -2 * 0.5})
    assert runner_up.iou == 0.5
    assert first.margin == pytest.approx(2.5 + 1)

    # The coarse level's only sample, at 8, 8; the box is 12 x 12 around 8, 6
    assert (second.positive.index, second.positive.level, second.positive.stride) == (4, 1, 16)
    assert second.offset == (0, 2) and second.relative_offset == pytest.approx((0, 1 / 6))

    summary = summarize_assignments([first, second])
    assert summary["objects"] == 2 and summary["share_by_stride"] == {8: 0.5, 16: 0.5}
    assert summary["distance"] == 5 and summary["relative_distance"] == pytest.approx(7 / 12)
    assert summary["terms"] == pytest.approx({"class": focal, "l1": 0, "giou": -2})
    assert summary["margin"] == pytest.approx((first.margin + second.margin) / 2)


def test_hungarian_gives_one_of_two_twins_its_second_choice(predictions) -> None:
    model = hand_made(HungarianMatcher(cost=None), predictions)
    gt = objects([[0, 0, 8, 8]] * 2, [1, 1])
    found = inspect_assignment(model, {"image": None, "instances": gt})
    worse, better = sorted(found, key=lambda a: a.margin)
    assert (better.positive.index, better.runner_up.index) == (2, 1)
    assert (worse.positive.index, worse.runner_up.index) == (1, 2)
    assert better.margin == pytest.approx(3.5) and worse.margin == pytest.approx(-3.5)


def test_rescoring_matches_among_its_candidates(predictions) -> None:
    model = hand_made(MinCostMatcher(cost=None), predictions)
    predictions.pred_logits[0, 1] = torch.tensor([-9.0, 2.0])  # the only candidate
    inputs = {"image": None, "instances": objects([[0, 0, 8, 8]], [1])}
    (dense,) = inspect_assignment(model, inputs)
    model.rescoring = Rescoring(1, init="zero")
    (rescored,) = inspect_assignment(model, inputs)
    assert dense.positive.index == rescored.runner_up.index == 2  # predicts the object's box
    assert rescored.positive.index == 1
    assert rescored.positive.score == pytest.approx(1 / (1 + math.exp(-2)))
    assert rescored.runner_up.score == pytest.approx(0, abs=1e-9)


def test_awkward_objects_and_predictions(predictions) -> None:
    model = hand_made(MinCostMatcher(cost=None), predictions)
    assert inspect_assignment(model, {"image": None, "instances": objects([], [])}) == []
    (flat,) = inspect_assignment(model, {"image": None, "instances": objects([[2, 2, 2, 8]], [0])})
    assert math.isnan(flat.relative_offset[0]) and math.isnan(flat.relative_distance)
    assert math.isfinite(flat.distance)

    broken = predictions._replace(pred_logits=torch.full((1, 5, 2), math.nan))
    gt = objects([[0, 0, 8, 8]], [0])
    model = hand_made(MinCostMatcher(cost=None), broken)
    (lost,) = inspect_assignment(model, {"image": None, "instances": gt})
    assert lost.runner_up is None and lost.margin is None and math.isnan(lost.positive.cost)
    assert math.isnan(summarize_assignments([lost])["margin"])

    def bare_cost(logits, boxes, anchors, gt):
        return torch.arange(len(logits)).float()[:, None].expand(-1, len(gt))

    model = hand_made(MinCostMatcher(cost=bare_cost), predictions)
    (plain,) = inspect_assignment(model, {"image": None, "instances": gt})
    assert plain.positive.terms == {"cost": 0} and plain.runner_up.terms == {"cost": 1}


@pytest.mark.parametrize(
    ("name", "cost", "matcher", "parts"),
    [
        ("onenet_fcos_R18_FPN", "MatchingCost", "MinCostMatcher", ["class", "l1", "giou"]),
        ("onenet_fcos_R18_FPN", "MatchingCost", "HungarianMatcher", ["class", "l1", "giou"]),
        ("onenet_fcos_R18_FPN", "PointCost", "MinCostMatcher", ["class", "l1"]),
        ("onenet_retinanet_R18_FPN", "AnchorCost", "MinCostMatcher", ["class", "l1", "giou"]),
        ("onenet_point_R18", "PointCost", "MinCostMatcher", ["class", "l1"]),
    ],
)
def test_agrees_with_the_cost_matrix(name, cost, matcher, parts, make_gt) -> None:
    model = build(name, "MODEL.ONENET.MATCHER.COST", cost, "MODEL.ONENET.MATCHER.NAME", matcher)
    gt = make_gt(6, (64, 90), 10)
    image = torch.randint(0, 256, (3, 64, 90), dtype=torch.uint8)
    found = inspect_assignment(model, {"image": image, "instances": gt})

    with torch.no_grad():
        features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        out = model.head([features[name] for name in model.head_in_features])
        matrix = model.criterion.matcher.cost(
            out.pred_logits[0], out.pred_boxes[0], out.anchors, gt
        )
        ((samples, gt_indices),) = model.criterion.matcher(out, [gt])
    assert [a.object_index for a in found] == gt_indices.tolist() == list(range(6))
    assert [a.positive.index for a in found] == samples.tolist()
    shapes = model.backbone.output_shape()
    for j, a in enumerate(found):
        column = matrix[:, j]
        order = [i for i in column.argsort().tolist() if i != a.positive.index]
        assert a.runner_up.cost == pytest.approx(column[order[0]].item(), abs=1e-5)
        for sample in (a.positive, a.runner_up):
            assert list(sample.terms) == parts
            assert sum(sample.terms.values()) == pytest.approx(sample.cost, abs=1e-5)
            assert sample.cost == pytest.approx(column[sample.index].item(), abs=1e-5)
            score = out.pred_logits[0, sample.index, gt.gt_classes[j]].sigmoid().item()
            assert sample.score == pytest.approx(score)
            # Where the sample lies: inside of its level's part of all samples
            start = sum(out.level_sizes[: sample.level])
            assert start <= sample.index < start + out.level_sizes[sample.level]
            assert sample.stride == shapes[model.head_in_features[sample.level]].stride
            center = (out.anchors[sample.index, :2] + out.anchors[sample.index, 2:]) / 2
            assert sample.location == tuple(center.tolist())


def test_moves_by_hand(predictions) -> None:
    matcher = MinCostMatcher(cost=None)
    gt = objects([[0, 0, 8, 8], [2, 0, 14, 12]], [1, 0])
    inputs = {"image": None, "instances": gt}
    before = inspect_assignment(hand_made(matcher, predictions), inputs)
    # The first object's box is now predicted by the coarse sample, the second's by none so well
    boxes = predictions.pred_boxes[:, [0, 1, 3, 4, 2]]
    moved = predictions._replace(boxes=DenseBoxes(boxes, predictions.anchors))
    after = inspect_assignment(hand_made(matcher, moved), inputs)
    first, second = compare_assignments(before, after)
    assert (first.before.index, first.after.index) == (2, 4) and first.moved
    assert first.level_change == 1
    assert first.distance == pytest.approx(math.hypot(4, 4))  # from 4, 12 to 8, 8
    assert first.distance_in_strides == pytest.approx(math.hypot(4, 4) / 8)
    assert (second.before.index, second.after.index, second.level_change) == (4, 3, -1)
    assert second.distance_in_strides == pytest.approx(math.hypot(4, 4) / 16)

    summary = summarize_moves([first, second])
    assert (summary["objects"], summary["moved"]) == (2, 1)
    assert summary["to_coarser"] == summary["to_finer"] == 0.5
    assert summary["distance"] == pytest.approx(math.hypot(4, 4))

    still = compare_assignments(before, before)
    assert not any(move.moved or move.level_change or move.distance for move in still)
    assert summarize_moves([*still, first, second])["distance"] == summary["distance"]
    assert math.isnan(summarize_moves(still)["distance"])
    assert [m.object_index for m in compare_assignments(before, after[1:])] == [1]
    with pytest.raises(ValueError, match="Object 0 has the box"):
        compare_assignments(before, [replace(after[0], box=(0, 0, 1, 1))])


# TensorBoard


def train_step(model: torch.nn.Module, batch: list[dict], draws: bool) -> dict[str, float]:
    with EventStorage():
        model.train()
        if draws:
            put_pictures(model, batch[:1])
        return {name: loss.item() for name, loss in model(batch).items()}


def test_pictures_do_not_change_the_training(make_gt) -> None:
    drawing, plain = build("onenet_point_R18"), build("onenet_point_R18")
    plain.load_state_dict(drawing.state_dict())
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    batch = [{"image": image, "instances": make_gt(3, (64, 64), 10)}] * 2
    np.random.seed(0)
    wanted, numbers = train_step(plain, batch, draws=False), np.random.rand(3)
    np.random.seed(0)
    state = torch.get_rng_state()
    assert train_step(drawing, batch, draws=True) == wanted
    assert (np.random.rand(3) == numbers).all() and torch.equal(torch.get_rng_state(), state)
    means = [name for name in plain.state_dict() if name.endswith("running_mean")]
    assert means
    for name, value in plain.state_dict().items():
        assert torch.equal(drawing.state_dict()[name], value), name


@pytest.mark.parametrize("culprit", ["inspect_assignment", "draw_assignment"])
def test_training_mode_survives_a_failing_picture(culprit, make_gt, monkeypatch) -> None:
    def fail(*args):
        raise RuntimeError("no picture")

    monkeypatch.setattr(onenet.engine.training_pictures, culprit, fail)
    model = build("onenet_fcos_R18_FPN")
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="no picture"):
        train_step(model, [{"image": image, "instances": make_gt(2, (64, 64), 10)}], draws=True)
    assert all(module.training for module in model.modules())


# Weights


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_weights_have_to_fit(tmp_path: Path) -> None:
    model = build()
    DetectionCheckpointer(model, str(tmp_path)).save("fits", iteration=7)
    other = build()
    load_weights(other, str(tmp_path / "fits.pth"))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name

    state = model.state_dict()
    scales = state.pop("head.scales")
    torch.save({"model": state}, tmp_path / "missing.pth")
    torch.save({**state, "head.scales": scales[:3]}, tmp_path / "shape.pth")
    torch.save({**state, "head.scales": scales, "a": scales, "b": scales}, tmp_path / "more.pth")
    for name, what in [
        ("missing", "it lacks head.scales"),
        ("shape", "it has in another shape head.scales"),
        ("more", "it has, and the model does not, a and 1 more"),
    ]:
        with pytest.raises(ConfigError, match=rf"not of the model .*: {what}\."):
            load_weights(other, str(tmp_path / f"{name}.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth"])
def test_weights_run_no_code(suffix: str, tmp_path: Path) -> None:
    path, trace = tmp_path / f"evil{suffix}", tmp_path / "was_here"
    content = {"model": Payload(trace), "model_state": Payload(trace), "__author__": "x"}
    for save in (
        lambda: torch.save(content, path),
        lambda: path.write_bytes(pickle.dumps(content)),
    ):
        save()
        with pytest.raises(ConfigError, match=r"evil\.\w+ is no (checkpoint|pickle of arrays)"):
            load_weights(build(), str(path))
    assert not trace.exists()


def test_weights_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with pytest.raises(ConfigError, match="there is no file"):
        load_weights(build(), str(path))
    for content in (b"", b"text", b"PK\x03\x04 a broken archive"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="no checkpoint that torch can read"):
            load_weights(build(), str(path))


# The tool


@pytest.fixture(scope="module")
def tool() -> Callable[[list[str]], None]:
    """``main`` of tools/inspect_assignment.py."""
    path = ROOT / "tools" / "inspect_assignment.py"
    spec = importlib.util.spec_from_file_location("inspect_assignment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> SimpleNamespace:
    """Four images, the second one empty and the third with a crowd only; and two checkpoints."""
    folder = tmp_path_factory.mktemp("tiny")
    images, annotations = [], []
    for i in range(1, 5):
        Image.fromarray(np.full((48, 64, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 48, "width": 64})
        for box in [[4, 4, 20, 20], [30, 10, 24, 30]]:
            if i != 2:
                number = len(annotations) + 1
                annotations.append(
                    {"id": number, "image_id": i, "category_id": 3 + number % 2, "bbox": box,
                     "area": box[2] * box[3], "iscrowd": int(i == 3)}
                )  # fmt: skip
    categories = [{"id": 3, "name": "odd"}, {"id": 4, "name": "even"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "set.json").write_text(json.dumps(content))
    opts = [
        "DATASETS.TEST_JSON", str(folder / "set.json"), "DATASETS.TEST_IMAGE_ROOT", str(folder),
        "INPUT.MIN_SIZE_TEST", "96",
    ]  # fmt: skip
    config = str(CONFIGS / "onenet_fcos_R18_FPN.yaml")
    cfg = load_config(config, [*opts, "MODEL.DEVICE", "cpu"], eval_only=True)
    for seed in (1, 2):
        torch.manual_seed(seed)
        DetectionCheckpointer(build_model(cfg), str(folder)).save(f"model_{seed}")
    return SimpleNamespace(
        folder=folder,
        config=config,
        opts=opts,
        weights=[str(folder / f"model_{seed}.pth") for seed in (1, 2)],
    )


def test_tool_with_two_checkpoints(tool, tiny, tmp_path: Path, capsys) -> None:
    out = tmp_path / "a" / "b"
    tool(
        ["--config-file", tiny.config, "--weights", tiny.weights[0], "--other-weights",
         tiny.weights[1], "--output", str(out), *tiny.opts]
    )  # fmt: skip
    report = json.loads((out / "assignments.json").read_text())
    assert [image["image_id"] for image in report["images"]] == [1, 4]
    first = report["images"][0]
    assert (first["height"], first["width"]) == (96, 128)  # at test size
    before, after = first["assignments"]
    assert (
        before[1]["box"] == [60, 20, 108, 80] and report["class_names"][before[1]["object_class"]]
    )
    for assignment in (*before, *after):
        assert set(assignment["positive"]["terms"]) == {"class", "l1", "giou"}
    for old, new, move in zip(before, after, first["moves"], strict=True):
        assert move["before"] == old["positive"] and move["after"] == new["positive"]
    assert report["moves_summary"]["objects"] == 4
    for image in report["images"]:
        picture = np.asarray(Image.open(out / image["picture"]))
        assert picture.shape == (384 + 16, 3 * 512 + 32, 3)
    printed = capsys.readouterr().out
    for words in ("runner-up", "mean margin", "model_2.pth", "Of 4 objects", "odd", "even"):
        assert words in printed
    assert str(out) in printed


def test_tool_with_chosen_images(tool, tiny, tmp_path: Path, capsys) -> None:
    tool(
        ["--config-file", tiny.config, "--weights", tiny.weights[0], "--image-ids", "4,1",
         "--output", str(tmp_path), *tiny.opts]
    )  # fmt: skip
    report = json.loads((tmp_path / "assignments.json").read_text())
    assert [image["image_id"] for image in report["images"]] == [4, 1]
    assert report["images"][0]["moves"] == [] and "moves_summary" not in report
    assert "Of 4 objects" not in capsys.readouterr().out


def test_tool_says_what_is_wrong(tool, tiny, tmp_path: Path, monkeypatch) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    empty = tmp_path / "empty.json"
    content = json.loads((tiny.folder / "set.json").read_text())
    empty.write_text(json.dumps({**content, "annotations": content["annotations"][2:4]}))

    def sentence(*opts: str, **changed: str) -> str:
        options = {
            "config-file": tiny.config,
            "weights": tiny.weights[0],
            "output": str(tmp_path / "out"),
            **{key.replace("_", "-"): value for key, value in changed.items()},
        }
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        with pytest.raises(SystemExit) as stopped:
            tool([*words, *tiny.opts, *opts])
        message = stopped.value.code
        assert message.startswith("error: ") and "\n" not in message
        return message

    assert "there is no file 'gone.pth'" in sentence(weights="gone.pth")
    assert "there is no file 'gone.pth'" in sentence(other_weights="gone.pth")
    assert "in another shape head.cls_subnet" in sentence("MODEL.ONENET.HEAD.CONV_DIM", "32")
    baseline = str(CONFIGS / "baseline_fcos_R18_FPN.yaml")
    assert "only OneNet assigns" in sentence(config_file=baseline)
    assert "Cannot write into" in sentence(output=str(occupied))
    assert "Cannot write into" in sentence(output=str(occupied / "below"))
    with monkeypatch.context() as patched:
        # Not by chmod, which root ignores
        patched.setattr("tempfile.TemporaryFile", lambda dir: open("/nowhere/at/all"))
        assert "Cannot write into" in sentence()
    assert "has no image '77'" in sentence(image_ids="77")
    assert "the image '2' has no objects" in sentence(image_ids="2")
    assert "the image '3' has no objects" in sentence(image_ids="3")  # a crowd is none
    assert "--num-images is 0" in sentence(num_images="0")
    assert "has an object" in sentence("DATASETS.TEST_JSON", str(empty))
