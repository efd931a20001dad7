"""Switching NMS off: the models' thresholds, and their outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances, pairwise_iou
from torch import nn

from onenet import load_config
from onenet.evaluation import carries_nms, without_nms
from onenet.modeling.baselines import FCOSBaseline

THRESH = 0.3
CASES = {
    "baseline_retinanet_R18_FPN": [
        "MODEL.RETINANET.NMS_THRESH_TEST", THRESH, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0,
    ],
    "baseline_fcos_R18_FPN": [
        "MODEL.FCOS.NMS_THRESH_TEST", THRESH, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0,
    ],
    "onenet_fcos_R18_FPN": [
        "MODEL.ONENET.NMS_THRESH_TEST", THRESH, "MODEL.ONENET.NMS_TEST", True,
    ],
}  # fmt: skip


def build(root: Path, name: str, opts: list) -> nn.Module:
    opts = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *map(str, opts)]
    cfg = load_config(str(root / "configs" / "digits" / f"{name}.yaml"), opts, eval_only=True)
    return build_model(cfg).eval()


def detect(model: nn.Module) -> Instances:
    image = torch.arange(3 * 96 * 96).remainder(251).view(3, 96, 96)
    with torch.no_grad():
        return model([{"image": image, "height": 96, "width": 96}])[0]["instances"]


def num_overlapping(found: Instances) -> int:
    """Pairs of one class that overlap by far more than the threshold.

    With NMS there are a few, too: boxes are clipped to the image only afterwards.
    """
    ious = pairwise_iou(found.pred_boxes, found.pred_boxes)
    same = found.pred_classes[:, None] == found.pred_classes[None, :]
    return int(((ious > 2 * THRESH) & same).triu(1).sum())


@pytest.mark.parametrize("name", CASES)
def test_suppression_stops_and_comes_back(repo_root: Path, name: str) -> None:
    model = build(repo_root, name, CASES[name])
    if isinstance(model, FCOSBaseline):
        nn.init.constant_(model.head.bbox_pred.bias, 3.0)  # untrained, many boxes are empty
    wrapped = nn.ModuleDict({"module": model})  # as DDP does
    assert carries_nms(model) and carries_nms(wrapped)
    before = detect(model)
    with pytest.raises(RuntimeError, match="inside"), without_nms(wrapped):
        assert not carries_nms(model)
        found = detect(model)
        assert len(found) == 100  # nothing but top-k is left
        assert num_overlapping(found) >= num_overlapping(before) + 10
        # The best scores, which NMS can only thin out
        assert (found.scores[: len(before)] >= before.scores).all()
        assert not torch.equal(found.scores[: len(before)], before.scores)
        raise RuntimeError("inside")
    assert carries_nms(model)
    after = detect(model)
    assert torch.equal(after.pred_boxes.tensor, before.pred_boxes.tensor)
    assert torch.equal(after.scores, before.scores)


def test_onenet_carries_none(repo_root: Path) -> None:
    model = build(repo_root, "onenet_fcos_R18_FPN", [])
    assert not carries_nms(model)
    with without_nms(model):
        assert model.nms_thresh is None
    assert model.nms_thresh is None


def test_thresholds_deep_in_a_model() -> None:
    """Like the R-CNNs: in the box predictor; the RPN's NMS of proposals is not touched."""
    model = nn.ModuleDict({"rpn": nn.Identity(), "box": nn.ModuleList([nn.Identity()])})
    predictor = model["box"][0]
    model["rpn"].nms_thresh, predictor.test_nms_thresh = 0.7, 0.5
    with without_nms(model):
        assert (model["rpn"].nms_thresh, predictor.test_nms_thresh) == (0.7, 1.0)
        assert not carries_nms(model)
    assert predictor.test_nms_thresh == 0.5
