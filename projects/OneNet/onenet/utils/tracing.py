"""Tells eager execution from tracing and compiling."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["in_graph", "may_look"]


def in_graph() -> bool:
    """Whether torch.compile, torch.export or TorchScript's tracer is recording a graph, which must
    hold for other values and sizes than those it is recorded with.
    """
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def may_look(x: Tensor) -> bool:
    """Whether code may branch on a tensor's values at no cost.

    False in a graph, on a GPU (where reading values synchronises), and for tensors without values,
    such as fake tensors.
    """
    return type(x) is Tensor and x.device.type == "cpu" and not in_graph()
