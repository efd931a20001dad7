"""Score thresholds: best F1 against brute force, the file, whose it is, and what may be wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onenet.engine import Trainer, load_config
from onenet.evaluation import EndToEndEvaluator, record_weights
from onenet.evaluation.thresholds import (
    best_threshold,
    find_thresholds,
    load_thresholds,
    weights_digest,
)
from onenet.utils.errors import ConfigError, DataError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "digits"


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def f1(kept: np.ndarray, correct: np.ndarray, num_objects: int) -> float:
    hits = int((kept & correct).sum())
    precision = hits / kept.sum() if kept.any() else 0.0
    recall = hits / num_objects
    return 2 * precision * recall / (precision + recall) if hits else 0.0


# A few levels, so that scores are often equal, and two neighbours in float32
LEVELS = [*floats(0, 1e-8, 0.1, 0.25, 0.5, 0.7, 1), np.nextafter(np.float32(0.5), np.float32(1))]


@settings(max_examples=300, deadline=None)
@given(
    detections=st.lists(st.tuples(st.sampled_from(LEVELS), st.booleans()), max_size=12),
    missed=st.integers(0, 4),
)
def test_best_f1_by_brute_force(detections: list, missed: int) -> None:
    scores = floats(*(score for score, _ in detections))
    correct = np.array([is_correct for _, is_correct in detections], dtype=bool)
    num_objects = int(correct.sum()) + missed
    found = best_threshold(scores, correct, num_objects)
    if not correct.any():
        assert found is None
        return
    cuts = sorted(set(scores.tolist()), reverse=True)  # keeping what is >= each
    values = [f1(scores >= np.float32(cut), correct, num_objects) for cut in cuts]
    best = max(values)
    lowest_kept = next(c for c, v in zip(cuts, values, strict=True) if v >= best - 1e-12)
    kept = scores >= np.float32(lowest_kept)

    assert found["f1"] == pytest.approx(best)
    assert found["recall"] == pytest.approx((kept & correct).sum() / num_objects)
    assert found["precision"] == pytest.approx((kept & correct).sum() / kept.sum())
    threshold = found["threshold"]
    # Compared in float32, as detectors' scores are, and in float64
    assert threshold == np.float32(threshold)
    assert ((scores >= threshold) == kept).all()
    assert ((scores.astype(np.float64) >= threshold) == kept).all()


def test_the_threshold_lies_midway() -> None:
    correct = np.array([True, False, True, False])
    found = best_threshold(floats(0.9, 0.3, 0.7, 0.2), correct, 2)
    assert found == pytest.approx({"threshold": 0.5, "f1": 1, "precision": 1, "recall": 1})
    # Nothing dropped: half of the lowest
    assert best_threshold(floats(0.8, 0.4), np.array([True, True]), 2)["threshold"] == (
        pytest.approx(0.2)
    )


def test_equal_scores_and_equal_f1() -> None:
    # One true and one false positive of equal score: both or neither, whatever their order
    for correct in ([True, False], [False, True]):
        found = best_threshold(floats(0.6, 0.6), np.array(correct), 1)
        assert found["precision"] == 0.5 and found["threshold"] == pytest.approx(0.3)
    # F1 is 2/3 with the best one alone, and with all four: the fewer
    correct = np.array([True, False, False, True])
    found = best_threshold(floats(0.9, 0.8, 0.7, 0.6), correct, 2)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["threshold"] == pytest.approx(0.85)


SIZE = 400
A, B, FAR = (0, 0, 10, 10), (100, 0, 110, 10), (200, 0, 210, 10)


def instances(detections: list[tuple]) -> Instances:
    return Instances(
        (SIZE, SIZE),
        pred_boxes=Boxes(torch.tensor([d[0] for d in detections]).float().reshape(-1, 4)),
        pred_classes=torch.tensor([d[1] for d in detections], dtype=torch.int64),
        scores=torch.tensor([d[2] for d in detections], dtype=torch.float32),
    )


@pytest.fixture
def evaluate(tmp_path: Path):
    """Evaluates images, lists of (box, class[, iscrowd]), and detections (box, class, score)."""
    names = []

    def call(
        images: list, detections: list, classes: list[str] | None, **kwargs: Any
    ) -> dict[str, Any] | None:
        name = f"hand_made_thresholds_{tmp_path.name}_{len(names)}"
        keys = ("bbox", "category_id", "iscrowd")
        dicts = [
            {
                "image_id": i,
                "annotations": [
                    {"bbox_mode": BoxMode.XYXY_ABS, **dict(zip(keys, (*o, 0)[:3], strict=True))}
                    for o in objects
                ],
            }
            for i, objects in enumerate(images)
        ]
        names.append(name)
        DatasetCatalog.register(name, lambda: dicts)
        if classes is not None:
            MetadataCatalog.get(name).set(thing_classes=classes)
        evaluator = EndToEndEvaluator(dataset_name=name, output_dir=str(tmp_path), **kwargs)
        for i, of_image in enumerate(detections):
            evaluator.process([{"image_id": i}], [{"instances": instances(of_image)}])
        path = tmp_path / "thresholds.json"
        path.unlink(missing_ok=True)
        evaluator.evaluate()
        assert (tmp_path / "end_to_end.json").is_file()
        return json.loads(path.read_text()) if path.is_file() else None

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_file_by_hand(evaluate) -> None:
    images = [[(A, 0), (B, 0), (A, 1)], [(A, 0)]]
    detections = [
        [(A, 0, 0.9), (B, 0, 0.7), (A, 0, 0.5), (FAR, 1, 0.8), (FAR, 2, 0.6)],
        [(A, 0, 0.6), (FAR, 0, 0.65)],
    ]
    content = evaluate(images, detections, ["some", "missed", "absent"])
    assert content["dataset"].startswith("hand_made_thresholds")
    assert content["iou_thresh"] == 0.5 and content["weights"] is None
    some, missed, absent = content["classes"]
    # 0.9, 0.7 and 0.6 find the objects; 0.65 on none and the duplicate of 0.5 are wrong
    assert some == pytest.approx(
        {
            "name": "some",
            "threshold": 0.55,
            "f1": 2 * 3 / (4 + 3),
            "precision": 3 / 4,
            "recall": 1,
            "num_objects": 3,
        }
    )
    nothing = {"threshold": None, "f1": None, "precision": None, "recall": None}
    assert missed == {"name": "missed", **nothing, "num_objects": 1}
    assert absent == {"name": "absent", **nothing, "num_objects": 0}
    assert evaluate([[]], [[]], ["a"])["classes"] == [{"name": "a", **nothing, "num_objects": 0}]


def test_the_iou_decides(evaluate) -> None:
    detection = ((0, 0, 10, 6), 0, 0.8)  # IoU 0.6
    for iou_thresh, threshold in ((0.5, 0.4), (0.7, None)):
        content = evaluate([[(A, 0)]], [[detection]], ["a"], iou_thresh=iou_thresh)
        assert content["iou_thresh"] == iou_thresh
        assert content["classes"][0]["threshold"] == pytest.approx(threshold)


def test_crowds_count_neither_way(evaluate) -> None:
    region = (100, 0, 200, 100)
    # 0.9 and 0.8 lie inside the region, without any IoU to speak of; FAR does not
    detections = [(B, 0, 0.9), ((150, 50, 160, 60), 0, 0.8), (A, 0, 0.7)]
    entry = evaluate([[(A, 0), (region, 0, 1)]], [detections], ["a"])["classes"][0]
    assert entry["num_objects"] == 1 and entry["precision"] == 1
    assert entry["threshold"] == pytest.approx(0.35)
    # Of another class it excuses nothing
    entry = evaluate([[(A, 0), (region, 1, 1)]], [detections], ["a", "b"])["classes"][0]
    assert entry["precision"] == pytest.approx(1 / 3)


def test_only_where_it_makes_sense(evaluate) -> None:
    assert evaluate([[(A, 0)]], [[(A, 0, 0.9)]], None) is None  # nobody names the classes
    assert evaluate([[(A, 0)]], [[(A, 0, 0.9)]], ["a"], calibrates=False) is None


@pytest.fixture
def thresholds_file(tmp_path: Path):
    def write(*thresholds: float | None, **changes: Any) -> str:
        path = tmp_path / "thresholds.json"
        classes = [{"name": f"c{i}", "threshold": t} for i, t in enumerate(thresholds)]
        path.write_text(json.dumps({"weights": "me", "classes": classes, **changes}))
        return str(path)

    return write


def test_classes_without_a_threshold_take_the_median(thresholds_file) -> None:
    names = ["c0", "c1", "c2", "c3"]
    path = thresholds_file(0.2, None, 0.6, 0.3)
    assert load_thresholds(path, names, "me") == [0.2, 0.3, 0.6, 0.3]
    path = thresholds_file(None, None)
    assert load_thresholds(path, names[:2], "me") == [0.3, 0.3]
    path = thresholds_file(0, 1)
    assert load_thresholds(path, names[:2], "me") == [0.0, 1.0]


def test_foreign_thresholds_are_refused(thresholds_file) -> None:
    path = thresholds_file(0.2, 0.4)
    for names in (["c1", "c0"], ["c0"], ["c0", "c1", "c2"]):
        with pytest.raises(ConfigError, match=r"are of the classes c0, c1, but the model's are"):
            load_thresholds(path, names, "me")
    with pytest.raises(ConfigError, match=r"thresholds\.json are of other weights"):
        load_thresholds(path, ["c0", "c1"], "you")
    with pytest.raises(ConfigError, match="of other weights"):
        load_thresholds(thresholds_file(0.2, weights=None), ["c0"], "me")


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"weights": "me", "classes": [{"name": "c0", "thresh',
        "[]",
        "{}",
        '{"weights": "me", "classes": {"c0": 0.3}}',
        '{"weights": "me", "classes": [{"name": "c0"}]}',
        '{"weights": "me", "classes": [{"threshold": 0.3}]}',
        '{"weights": "me", "classes": [{"name": "c0", "threshold": "0.3"}]}',
        '{"weights": "me", "classes": [{"name": "c0", "threshold": true}]}',
        '{"weights": "me", "classes": [{"name": "c0", "threshold": 1.5}]}',
        '{"weights": "me", "classes": [{"name": "c0", "threshold": NaN}]}',
        b"\xff\xfe\x00",
    ],
)
def test_damaged_files_are_told(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "thresholds.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"thresholds\.json .*--eval-only"):
        load_thresholds(str(path), ["c0"], "me")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read \(No such file"):
        load_thresholds(str(tmp_path / "none.json"), ["c0"], "me")


def test_found_by_the_weights(tmp_path: Path, monkeypatch) -> None:
    weights = tmp_path / "model_final.pth"
    assert find_thresholds(str(weights)) is None
    path = tmp_path / "inference" / "thresholds.json"
    path.parent.mkdir()
    path.write_text("{}")
    assert find_thresholds(str(weights)) == str(path)
    monkeypatch.chdir(tmp_path)
    assert find_thresholds("model_final.pth") == str(Path("inference", "thresholds.json"))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.ONENET.RESCORING.CANDIDATES", "50"]
    return build_model(load_config(str(CONFIGS / "onenet_fcos_R18_FPN.yaml"), opts))


def test_the_digest_notices_what_inference_uses(model: torch.nn.Module) -> None:
    digest = weights_digest(model)
    assert len(digest) == 64
    names = ["backbone.bottom_up.stem.conv1.weight", "head.cls_score.bias", "pixel_mean"]
    names.append("rescoring.weights")
    names.append(next(n for n, _ in model.named_buffers() if n.endswith("running_mean")))
    for name in names:
        other = copy.deepcopy(model)
        tensor = dict((*other.named_parameters(), *other.named_buffers()))[name]
        flat = tensor.detach().view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(10.0))  # the smallest change there is
        assert weights_digest(other) != digest, name
    assert weights_digest(copy.deepcopy(model).bfloat16()) != digest


def test_the_digest_ignores_the_rest(model: torch.nn.Module) -> None:
    digest = weights_digest(model)
    other = copy.deepcopy(model).eval()
    assert weights_digest(other) == digest
    counters = [b for n, b in other.named_buffers() if n.endswith("num_batches_tracked")]
    for counter in counters:
        counter += 1
    assert counters and weights_digest(other) == digest


def test_weights_are_recorded_once(tmp_path: Path, thresholds_file) -> None:
    record_weights(str(tmp_path), "me")  # there is no file
    assert not list(tmp_path.iterdir())
    path = thresholds_file(0.2, weights=None, dataset="set")
    record_weights(str(tmp_path), "me")
    record_weights(str(tmp_path), "you")  # not of that evaluation
    assert load_thresholds(path, ["c0"], "me") == [0.2]
    assert json.loads(Path(path).read_text())["dataset"] == "set"


def test_the_trainer_records_the_weights(tmp_path: Path) -> None:
    """One image and object; a detector with NMS, so that there is a second pass."""
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 30, 30]}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 64, "width": 64}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "square"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    opts = [
        "DATASETS.TEST_JSON", str(tmp_path / "set.json"),
        "DATASETS.TEST_IMAGE_ROOT", str(tmp_path),
        "OUTPUT_DIR", str(tmp_path / "out"),
        "INPUT.MIN_SIZE_TEST", "64",
        "DATALOADER.NUM_WORKERS", "0",
        "MODEL.DEVICE", "cpu",
    ]  # fmt: skip
    cfg = load_config(str(CONFIGS / "baseline_fcos_R18_FPN.yaml"), opts, eval_only=True)
    model = Trainer.build_model(cfg)
    path = find_thresholds(str(tmp_path / "out" / "model_final.pth"))
    assert path is None
    Trainer.test(cfg, model)
    path = find_thresholds(str(tmp_path / "out" / "model_final.pth"))
    before = weights_digest(model)
    assert json.loads(Path(path).read_text())["weights"] == before
    assert len(load_thresholds(path, ["square"], before)) == 1
    assert not (tmp_path / "out" / "inference" / "nms_off" / "thresholds.json").exists()

    # The next evaluation's are its own
    torch.nn.init.constant_(model.head.cls_score.bias, -4.0)
    Trainer.test(cfg, model)
    with pytest.raises(ConfigError, match="of other weights"):
        load_thresholds(path, ["square"], before)
    assert len(load_thresholds(path, ["square"], weights_digest(model))) == 1
