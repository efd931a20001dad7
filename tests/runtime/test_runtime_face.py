"""``onenet.Detector`` and ``onenet_runtime.Detector`` have one face, and find the same."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import onenet_runtime
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from onenet_runtime.predictor import Found
from PIL import Image

import onenet
from onenet.export import ExportOptions, export_checked


def face(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_detections() -> None:
    image, box = np.zeros((40, 60, 3), np.uint8), [[1.0, 2.0, 30.0, 20.0]]
    instances = Instances(
        (40, 60), pred_boxes=Boxes(box), scores=torch.ones(1), pred_classes=torch.tensor([1])
    )
    rows = Found(np.array(box, np.float32), np.ones(1, np.float32), np.array([1]))
    one = onenet.Detections(image, instances, ["cat", "dog"])
    other = onenet_runtime.Detections(image, rows, ["cat", "dog"])
    assert face(one) == face(other) and repr(one) == repr(other) == "Detections(dog 1.00)"
    for method in ("draw", "save", "to_supervision", "__len__"):
        parameters = [list(inspect.signature(getattr(d, method)).parameters) for d in (one, other)]
        assert parameters[0] == parameters[1]
    for height in (None, 100):
        assert one.draw(height).shape == other.draw(height).shape


@pytest.mark.slow
def test_detectors(repo_root: Path, tmp_path: Path) -> None:
    config = repo_root / "configs" / "digits" / "recommended_R18_FPN.yaml"
    cfg = onenet.load_config(str(config), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.05)  # so that scores differ
    weights, file, photos = tmp_path / "model.pth", tmp_path / "model.onnx", tmp_path / "photos"
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, weights)
    photos.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, size in enumerate([(70, 90), (90, 60)]):
        pixels = torch.randint(256, (*size, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(photos / f"{i}.png", exif=exif)
    export_checked(cfg, str(weights), file, ExportOptions(images=str(photos)))

    for threshold in (None, 0.9):
        one = onenet.Detector(weights, threshold=threshold)
        other = onenet_runtime.Detector(file, threshold=threshold)
        assert one.thresholds == other.thresholds
    assert face(other) - face(one) == {"detect_files"} and face(one) < face(other)
    assert one.class_names == other.class_names
    first, second = sorted(photos.iterdir())
    upright = np.asarray(Image.open(first).transpose(Image.Transpose.ROTATE_270))
    one, other = onenet.Detector(weights, threshold=0), onenet_runtime.Detector(file, threshold=0)
    images = [first, str(second), upright, Image.open(first)]
    for a, b in zip([*one(images), one(first)], [*other(images), other(first)], strict=True):
        assert len(a) == len(b) > 50
        np.testing.assert_allclose(a.boxes, b.boxes, atol=0.01)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
        assert a.class_names == b.class_names
        for key in ("boxes", "scores", "class_ids"):
            assert getattr(a, key).dtype == getattr(b, key).dtype
    for detector in (one, other):
        for wrong in (7, (first,), Image.new("F", (9, 9)), "gone.jpg"):
            with pytest.raises(ValueError):
                detector(wrong)
