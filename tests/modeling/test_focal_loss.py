"""The fast sum of the focal loss equals fvcore's, and so does its gradient."""

from __future__ import annotations

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss

from onenet.modeling import focal_loss
from onenet.modeling.focal_loss import focal_loss_sum


def fvcore_sum(logits, positives, alpha, gamma) -> torch.Tensor:
    target = torch.zeros(logits.numel())
    target[positives] = 1.0
    return sigmoid_focal_loss(logits, target.view(logits.shape), alpha, gamma, reduction="sum")


def test_scale_and_the_gradient_from_behind() -> None:
    logits, positives = torch.randn(4, 5), torch.tensor([3, 7])
    loss, gradient = loss_and_gradient(focal_loss_sum, logits, positives)
    scaled = loss_and_gradient(focal_loss_sum, logits, positives, 0.25, 2.0, 0.5)
    torch.testing.assert_close(scaled, (0.5 * loss, 0.5 * gradient))
    logits.requires_grad_()
    once = focal_loss_sum(logits, positives)
    for factor in (1.0, 1.0, 2.0):  # one after another, the graph being kept
        (found,) = torch.autograd.grad(once * factor, logits, retain_graph=True)
        torch.testing.assert_close(found, gradient / 3 * factor)
        once.backward(retain_graph=True)
    torch.testing.assert_close(logits.grad, gradient)


def loss_and_gradient(function, logits, *arguments) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.detach().clone().requires_grad_()
    loss = function(logits, *arguments)
    (3 * loss).backward()
    return loss.detach(), logits.grad


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5), (-1, 2.0), (0.25, 0.0)])
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_equals_fvcore(alpha: float, gamma: float, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(focal_loss, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    logits = 4 * torch.randn(2, 30, 5)
    positives = torch.tensor([3, 299, 17, 3, 150, 17])  # some twice
    ours = loss_and_gradient(focal_loss_sum, logits, positives, alpha, gamma)
    theirs = loss_and_gradient(fvcore_sum, logits, positives, alpha, gamma)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("logit", [-1e4, -90.0, 0.0, 90.0, 1e4])
def test_extreme_logits(logit: float) -> None:
    logits, positives = torch.full((2,), logit), torch.tensor([0])
    ours = loss_and_gradient(focal_loss_sum, logits, positives, 0.25, 2.0)
    theirs = loss_and_gradient(fvcore_sum, logits, positives, 0.25, 2.0)
    assert all(x.isfinite().all() for x in ours)
    torch.testing.assert_close(ours, theirs)


def test_without_positives_or_logits() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    logits = torch.randn(2, 3)
    ours = loss_and_gradient(focal_loss_sum, logits, none)
    torch.testing.assert_close(ours, loss_and_gradient(fvcore_sum, logits, none, 0.25, 2.0))
    loss, gradient = loss_and_gradient(focal_loss_sum, torch.zeros(2, 0, 3), none)
    assert loss == 0 and gradient.shape == (2, 0, 3)


def test_nan_stays_nan() -> None:
    for positives in (torch.tensor([0]), torch.tensor([1])):
        loss = focal_loss_sum(torch.tensor([float("nan"), 0.0]), positives)
        assert loss.isnan()


def test_strided_logits() -> None:
    logits = torch.randn(4, 6).t()
    torch.testing.assert_close(
        loss_and_gradient(focal_loss_sum, logits, torch.tensor([5])),
        loss_and_gradient(fvcore_sum, logits, torch.tensor([5]), 0.25, 2.0),
    )


def compare_kernel(device: str) -> None:
    from onenet.modeling.ops.triton_kernels import triton_focal_loss

    logits = torch.cat((torch.linspace(-60, 60, 3001), torch.tensor([-1e4, 1e4]))).to(device)
    exact = logits.double().cpu().requires_grad_()
    loss = focal_loss_sum(exact, torch.zeros(0, dtype=torch.int64), alpha=0.25)
    loss.backward()
    total, gradient = triton_focal_loss(logits, 0.75)
    torch.testing.assert_close(total.cpu().double(), loss.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.cpu().double(), exact.grad, rtol=1e-4, atol=1e-30)
    logits[7] = float("nan")
    total, gradient = triton_focal_loss(logits, 0.75)
    assert total.isnan() and gradient[7].isnan() and gradient.isnan().sum() == 1


@pytest.mark.slow
def test_kernel_in_tritons_interpreter(in_tritons_interpreter) -> None:
    in_tritons_interpreter("import test_focal_loss; test_focal_loss.compare_kernel('cpu')")


@pytest.mark.gpu
def test_kernel_on_a_gpu() -> None:
    compare_kernel("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_on_a_gpu(gamma: float) -> None:
    logits, positives = 4 * torch.randn(2, 3000, 7), torch.tensor([5, 41000, 5])
    expected = loss_and_gradient(focal_loss_sum, logits, positives, 0.25, gamma)
    found = loss_and_gradient(focal_loss_sum, logits.cuda(), positives.cuda(), 0.25, gamma)
    torch.testing.assert_close([x.cpu() for x in found], list(expected), rtol=1e-4, atol=1e-6)
