"""Whether operators are computed now, or recorded for later."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["in_graph", "may_look"]


def in_graph() -> bool:
    """Whether torch.compile, torch.export or TorchScript's tracer makes a graph of what is called.

    A graph is for other values, and other sizes, than those that it is made with.
    """
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def may_look(x: Tensor) -> bool:
    """Whether values of a tensor may decide what is computed: they are there, and for nothing.

    Not so in a graph, on a GPU, for which the host would wait, or for tensors without values, like
    those of an estimate.
    """
    return type(x) is Tensor and x.device.type == "cpu" and not in_graph()
