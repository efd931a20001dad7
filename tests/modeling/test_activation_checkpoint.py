"""Activation checkpointing changes memory, and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from onenet.predictor import load_predictor_config


def build(repo_root: Path, config: str, checkpointing: bool) -> torch.nn.Module:
    cfg = load_predictor_config(
        str(repo_root / "configs" / f"{config}.yaml"),
        [
            *("MODEL.ONENET.NUM_CLASSES", "4", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
            *("MODEL.ONENET.ACTIVATION_CHECKPOINTING", str(checkpointing)),
        ],
    )
    torch.manual_seed(1)
    return build_model(cfg)


def step(model: torch.nn.Module, make_gt) -> tuple[dict, int]:
    """Losses of a step, and the bytes that autograd kept for it."""
    torch.manual_seed(2)
    inputs = [
        {"image": torch.randint(256, (3, 96, 128)).float(), "instances": make_gt(n, num_classes=4)}
        for n in (3, 0)
    ]
    kept = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = model.train()(inputs)
    size = sum(kept.values())
    sum(losses.values()).backward()
    return losses, size


@pytest.mark.parametrize(
    ("config", "at_most"),
    [
        ("digits/recommended_R18_FPN", 0.6),
        ("digits/onenet_retinanet_R18_FPN", 0.6),
        ("digits/onenet_point_R18", 0.9),  # most of it is its neck
    ],
)
def test_same_results_with_less_memory(
    repo_root: Path, config: str, at_most: float, make_gt
) -> None:
    plain, saving = (build(repo_root, config, checkpointing) for checkpointing in (False, True))
    assert list(plain.state_dict()) == list(saving.state_dict())
    expected, much = step(plain, make_gt)
    losses, little = step(saving, make_gt)
    assert little < at_most * much
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(dict(plain.named_buffers()), dict(saving.named_buffers()))


def test_a_copy_is_a_copy(repo_root: Path, make_gt) -> None:
    """As the average of the weights takes one."""
    model = build(repo_root, "digits/recommended_R18_FPN", True)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    losses, _ = step(twin, make_gt)
    assert losses["loss_giou"] > 0
    twin_losses, _ = step(build(repo_root, "digits/recommended_R18_FPN", False), make_gt)
    torch.testing.assert_close(losses, twin_losses)
