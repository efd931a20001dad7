"""Activation checkpointing (arXiv 1604.06174)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from detectron2.modeling import ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_activations", "checkpointed"]


def checkpoint_activations(model: nn.Module) -> None:
    """Makes a model recompute activations in the backward pass, to save memory in training.

    Applies to the residual blocks of Detectron2's ResNets, and to modules with an attribute
    ``activation_checkpointing``, which is set to True. Results, gradients, batch norm statistics,
    weight names, evaluation and export do not change.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        if isinstance(module, ResNet):  # its forward calls the entries of this list
            module.stages = [_CheckpointedStage(stage) for stage in module.stages]
        elif hasattr(module, "activation_checkpointing"):
            module.activation_checkpointing = True


class _CheckpointedStage:
    def __init__(self, blocks: nn.Sequential) -> None:
        self.blocks = blocks

    def __call__(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpointed(block, x)
        return x


def checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """Calls a module; in training autograd stores only its input."""
    if not module.training:
        return module(x)
    contexts = (contextlib.nullcontext(), _statistics_stay(module))
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: contexts)


@contextlib.contextmanager
def _statistics_stay(module: nn.Module) -> Iterator[None]:
    """Keeps batch norm statistics unchanged when the forward pass is recomputed."""
    norms = [x for x in module.modules() if isinstance(x, _BatchNorm) and x.track_running_stats]
    before = [(x.momentum, x.num_batches_tracked.clone()) for x in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
