"""Activation checkpointing (arXiv 1604.06174): memory for time in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from detectron2.layers import CNNBlockBase
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..heads.dense_head import TowerHead

__all__ = ["checkpoint_activations"]


def checkpoint_activations(model: nn.Module) -> None:
    """Makes parts of a model keep only their inputs in training, and compute again in backward.

    The parts are stem and residual blocks of Detectron2's ResNets, and the towers of the heads.
    Results, gradients, batch norm's statistics and the weights' names stay as they are; so do
    evaluation and export. The model as a whole cannot be pickled afterwards.

    Args:
        model: is changed.
    """
    for module in list(model.modules()):
        if isinstance(module, CNNBlockBase):
            _checkpoint(module)
        elif isinstance(module, TowerHead):
            _checkpoint(module.cls_subnet)
            _checkpoint(module.bbox_subnet)


def _checkpoint(module: nn.Module) -> None:
    # A class of its own, not another forward in the instance, which would be lost to deep copies
    kind = type(module)
    module.__class__ = type(kind.__name__, (_Checkpointed, kind), {"__module__": kind.__module__})


class _Checkpointed(nn.Module):
    def forward(self, *args: Any) -> Any:
        if not self.training:
            return super().forward(*args)
        return checkpoint(
            super().forward,
            *args,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _statistics_stay(self)),
        )


@contextlib.contextmanager
def _statistics_stay(module: nn.Module) -> Iterator[None]:
    """Batch norm counts a batch once, though it is computed twice."""
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
