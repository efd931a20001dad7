"""Models to export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from onenet.engine import load_config
from onenet.modeling.meta_arch import OneNet

Built = tuple[CfgNode, OneNet]


@pytest.fixture
def build(repo_root: Path):
    """A model whose scores and boxes vary, without training: ``build(config, *opts)``."""

    def build_varied(config: str, *opts: str) -> Built:
        path = str(repo_root / "configs" / f"{config}.yaml")
        cfg = load_config(path, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
        torch.manual_seed(0)  # whatever checking the config drew
        model = build_model(cfg).eval()
        with torch.no_grad():
            model.head.cls_score.weight.normal_(std=0.05)
            if model.rescoring is not None:
                model.rescoring.weights.uniform_(0.01, 0.1)
            if hasattr(model.backbone, "neck"):  # else a deformable convolution deforms nothing
                for stage in model.backbone.neck.stages:
                    if hasattr(stage.conv, "offset"):
                        stage.conv.offset.weight.normal_(std=0.02)
        return cfg, model

    return build_varied
