"""Gradient accumulation: in pieces, the losses and gradients of the whole batch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from onenet.engine.accumulation import AccumulatingModel, accumulate_gradients
from onenet.predictor import load_predictor_config
from onenet.utils.errors import ConfigError


@pytest.fixture
def cfg(repo_root: Path) -> CfgNode:
    return load_predictor_config(
        str(repo_root / "configs" / "digits" / "onenet_fcos_R18_FPN.yaml"),
        [
            *("MODEL.ONENET.NUM_CLASSES", "5", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
            *("MODEL.RESNETS.NORM", "FrozenBN", "SOLVER.IMS_PER_BATCH", "4"),
        ],
    )


@pytest.fixture
def model(cfg: CfgNode) -> nn.Module:
    return build_model(cfg).train()


def batch(make_gt, counts: tuple[int, ...]) -> list[dict]:
    return [
        {"image": torch.randint(256, (3, 64, 64)).float(), "instances": make_gt(n, (64, 64))}
        for n in counts
    ]


def step(model: nn.Module, inputs: list[dict]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients."""
    model.zero_grad()
    losses = model(inputs)
    sum(losses.values()).backward()
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
    return losses, {name: g.clone() for name, g in gradients.items() if g is not None}


@pytest.mark.parametrize("counts", [(3, 1, 5, 2), (4, 0, 0, 0), (0, 0, 0, 0), (2, 7, 1, 0, 3)])
@pytest.mark.parametrize("num_pieces", [1, 2, 3, 4])
def test_the_batch_in_pieces(model, make_gt, counts: tuple[int, ...], num_pieces: int) -> None:
    inputs = batch(make_gt, counts)
    losses, gradients = step(model, inputs)
    found, found_gradients = step(
        AccumulatingModel(model, num_pieces, torch.Tensor.backward), inputs
    )
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found_gradients, gradients, rtol=1e-3, atol=1e-5)


def test_pieces_are_of_one_image_more_at_most() -> None:
    sizes = []

    class Counting(nn.Linear):
        def forward(self, inputs: list[int]) -> dict[str, Tensor]:
            sizes.append(len(inputs))
            return {"loss": self.weight.sum() * sum(inputs) / len(inputs)}

    model = Counting(1, 1)
    losses = AccumulatingModel(model, 4, torch.Tensor.backward)(list(range(10)))
    losses["loss"].backward()
    assert sorted(sizes) == [2, 2, 3, 3]
    # A model that does not say what its losses are divided by: by the images
    assert model.weight.grad.item() == pytest.approx(4.5)


class _Kept:
    """A tensor that autograd keeps for the backward pass; the bytes of all, now and at most."""

    now = most = 0

    def __init__(self, x: Tensor) -> None:
        self.tensor = x
        _Kept.now += x.nbytes
        _Kept.most = max(_Kept.most, _Kept.now)

    def __del__(self) -> None:
        _Kept.now -= self.tensor.nbytes


def test_memory_is_that_of_a_piece(model, make_gt) -> None:
    inputs, most = batch(make_gt, (2, 2, 2, 2)), []
    for stepped in (model, AccumulatingModel(model, 4, torch.Tensor.backward)):
        _Kept.now = _Kept.most = 0
        with torch.autograd.graph.saved_tensors_hooks(_Kept, lambda kept: kept.tensor):
            step(stepped, inputs)
        most.append(_Kept.most - 2 * sum(p.nbytes for p in model.parameters()))
    assert most[1] < 0.4 * most[0]


@pytest.mark.parametrize("has_scaler", [False, True])
def test_mixed_precision(cfg, model, make_gt, has_scaler: bool) -> None:
    """What Detectron2's AMPTrainer does, which needs a GPU: its scaler scales every piece."""
    inputs = batch(make_gt, (3, 1, 5, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs)
    sum(losses.values()).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()

    trainer = SimpleNamespace(model=model)
    if has_scaler:
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    cfg.defrost()
    cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS = 2
    accumulate_gradients(trainer, cfg)
    assert trainer.zero_grad_before_forward
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = trainer.model(inputs)
        assert torch.is_autocast_enabled("cpu")
    loss = sum(found.values())
    (trainer.grad_scaler.scale(loss) if has_scaler else loss).backward()
    scale = 256.0 if has_scaler else 1.0
    torch.testing.assert_close(found, losses, rtol=0.02, atol=0.02)
    trained = [p.grad / scale for p in model.parameters() if p.grad is not None]
    difference = torch.stack(
        [(p - q).norm() for p, q in zip(trained, expected, strict=True)]
    ).norm()
    assert difference < 0.05 * torch.stack([p.norm() for p in expected]).norm()


def test_evaluation_is_the_models_own(model, make_gt) -> None:
    in_pieces = AccumulatingModel(model, 3, torch.Tensor.backward)
    with torch.no_grad():
        assert len(in_pieces.eval()(batch(make_gt, (1, 1)))) == 2


def test_other_losses_in_each_piece() -> None:
    class Changing(nn.Linear):
        def forward(self, inputs: list[int]) -> dict[str, Tensor]:
            return {f"loss_{i}": self.weight.sum() * i for i in inputs}

    model = Changing(1, 1)
    nn.init.constant_(model.weight, 6.0)
    losses = AccumulatingModel(model, 2, torch.Tensor.backward)([1, 2])
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_1": 3.0, "loss_2": 6.0}


@pytest.mark.parametrize("count", [-1, 0, 5])
def test_a_number_of_pieces_that_cannot_be(cfg, model, count: int) -> None:
    cfg.defrost()
    cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS = count
    with pytest.raises(ConfigError, match=f"STEPS is {count}; give a number from 1 to 4, "):
        accumulate_gradients(SimpleNamespace(model=model), cfg)
