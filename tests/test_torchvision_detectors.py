"""torchvision's detectors under Detectron2: what they find, where, with and without NMS."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import nn

import torchvision_detectors  # noqa: F401  registers them
from onenet.engine import load_config
from onenet.evaluation import carries_nms, without_nms

ROOT = Path(__file__).resolve().parents[1]
BOX = [24.0, 30.0, 72.0, 90.0]
KINDS = ("FCOS", "RetinaNet")


def config(kind: str) -> CfgNode:
    path = ROOT / "configs" / "digits" / f"baseline_{kind.lower()}_R18_FPN.yaml"
    return load_config(str(path), ["MODEL.META_ARCHITECTURE", f"Torchvision{kind}"])


def picture() -> torch.Tensor:
    image = torch.full((3, 128, 128), 40, dtype=torch.uint8)
    image[:, 30:90, 24:72] = 220
    return image


@torch.no_grad()
def detect(model: nn.Module) -> Instances:
    """The detections in the original image, three times as wide and twice as high."""
    (found,) = model.eval()([{"image": picture(), "height": 256, "width": 384}])
    return found["instances"]


def largest_overlap(found: Instances) -> float:
    """The largest IoU of two boxes of a class."""
    same = found.pred_classes[:, None] == found.pred_classes
    return pairwise_iou(found.pred_boxes, found.pred_boxes)[same.triu(1)].max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_the_switch_of_nms(kind: str) -> None:
    model = build_model(config(kind))
    nothing = Instances((128, 128), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.arange(0))
    losses = model([{"image": picture(), "instances": nothing}])
    assert losses["classification"] > 0 and losses["bbox_regression"] == 0
    model.test_nms_thresh = 0.1
    kept = detect(model)
    assert carries_nms(model)
    with without_nms(model):
        assert not carries_nms(model)
        without = detect(model)
    assert largest_overlap(kept) < 0.11 < largest_overlap(without)
    assert kept.image_size == (256, 384) and kept.pred_boxes.tensor[:, 2].max() > 256


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_an_image_by_heart(kind: str) -> None:
    model = build_model(config(kind))
    truth = Instances((128, 128), gt_boxes=Boxes([BOX]), gt_classes=torch.tensor([3]))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(50):
        loss = sum(model([{"image": picture(), "instances": truth}]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = detect(model)[0]
    wanted = Boxes(torch.tensor([BOX]) * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    assert best.pred_classes.item() == 3
    assert pairwise_iou(best.pred_boxes, wanted).item() > 0.6
