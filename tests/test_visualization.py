"""Pictures: the sample that is drawn is the one the matcher takes; sizes and tiling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from onenet.config import load_config
from onenet.visualization import assign_samples, draw_assignment, draw_detections, tile

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "digits" / "onenet_fcos_R18_FPN.yaml"


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(load_config(str(CONFIG), ["MODEL.DEVICE", "cpu"])).eval()


def test_assigned_samples_are_the_matchers(model, make_gt) -> None:
    inputs = {
        "image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8),
        "instances": make_gt(4, (64, 96), 10),
    }
    gt_indices, points, levels = assign_samples(model, inputs)
    images = model.preprocess_image([inputs])
    with torch.no_grad():
        features = model.backbone(images.tensor)
        out = model.head([features[name] for name in model.head_in_features])
    cost = model.criterion.matcher.cost(
        out.pred_logits[0], out.pred_boxes[0], out.anchors, inputs["instances"]
    )
    samples = cost.argmin(dim=0)
    assert gt_indices.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(points, (out.anchors[samples, :2] + out.anchors[samples, 2:]) / 2)
    shapes = model.backbone.output_shape()
    strides = [shapes[model.head_in_features[level]].stride for level in levels]
    assert strides == (out.anchors[samples, 2] - out.anchors[samples, 0]).tolist()


def test_pictures(model, make_gt) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    gt = make_gt(3, (64, 96), 10)
    names = [str(i) for i in range(10)]
    drawn = draw_detections(image, gt, names, height=128)
    assert drawn.shape == (128, 192, 3) and drawn.dtype == np.uint8 and drawn.any()
    predicted = Instances(
        (64, 96),
        pred_boxes=Boxes([[8.0, 8, 40, 40]]),
        pred_classes=torch.tensor([3]),
        scores=torch.tensor([0.5]),
    )
    box = draw_detections(image, predicted, names, height=64)
    assert box[24, 8].any() and not box[4, 60].any()  # its left side, and nothing elsewhere
    inputs = {"image": torch.zeros(3, 64, 96, dtype=torch.uint8), "instances": gt}
    assert draw_assignment(model, inputs, image, height=128).shape == (128, 192, 3)
    inputs["instances"] = gt[[]]
    assert not draw_assignment(model, inputs, image, height=64).any()


def test_tile_joins_rows_of_different_length() -> None:
    black = np.zeros((10, 20, 3), np.uint8)
    picture = tile([[black, black], [black]], gap=2)
    assert picture.shape == (2 * 12 + 2, 2 * 22 + 2, 3)
    assert (picture[:2] == 255).all() and (picture[14:, 24:] == 255).all()
