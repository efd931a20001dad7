"""Optimisers and the clipping of the full model."""

import pytest
import torch
from detectron2.config import get_cfg

from onenet.config import add_onenet_config
from onenet.engine.solver import build_optimizer
from onenet.utils.errors import ConfigError


def config(**solver):
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def sgd_step(clip_type: str | None) -> list[float]:
    """Norms of what one SGD step moves two parameters whose gradients have norms 30 and 40."""
    cfg = config(OPTIMIZER="SGD", MOMENTUM=0.0)
    if clip_type:
        cfg.SOLVER.CLIP_GRADIENTS.update(ENABLED=True, CLIP_TYPE=clip_type, CLIP_VALUE=1.0)
    model = torch.nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    optimizer = build_optimizer(cfg, model)
    (30 * model[0] + 40 * model[1]).sum().backward()
    optimizer.step()
    return [-p.item() for p in model]


def test_full_model_clipping_scales_all_gradients_together() -> None:
    assert sgd_step(None) == [30.0, 40.0]
    assert sgd_step("norm") == pytest.approx([1.0, 1.0], rel=1e-4)  # Detectron2: each by itself
    assert sgd_step("full_model") == pytest.approx([0.6, 0.8], rel=1e-4)


def test_weight_decay_of_norm_layers_is_a_setting() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    cfg = config(WEIGHT_DECAY=0.1, WEIGHT_DECAY_NORM=0.0)
    decay = {
        p: group["weight_decay"]
        for group in build_optimizer(cfg, model).param_groups
        for p in group["params"]
    }
    assert decay[model[0].weight] == 0.1 and decay[model[1].weight] == 0.0


def test_unknown_optimizer_and_clipping() -> None:
    cfg = config()
    cfg.SOLVER.CLIP_GRADIENTS.update(ENABLED=True, CLIP_TYPE="some")
    with pytest.raises(ConfigError, match=r"CLIP_TYPE is 'some'; choose 'full_model'"):
        build_optimizer(cfg, torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match=r"SOLVER\.OPTIMIZER is 'Adam'; choose 'AdamW' or 'SGD'"):
        build_optimizer(config(OPTIMIZER="Adam"), torch.nn.Linear(1, 1))
