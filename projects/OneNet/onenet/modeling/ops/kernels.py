"""Whether the Triton kernels are used."""

from __future__ import annotations

import logging
from typing import Any

import torch

__all__ = ["run_kernel"]

_works = True  # until it has failed


def run_kernel(name: str, device: torch.device, gamma: float, *arguments: Any) -> Any:
    """What a function of :mod:`onenet.modeling.ops.triton_kernels` returns, or None where it cannot
    be used.

    After a failure (no Triton, no C compiler, an old GPU), of which it tells once, none is used.

    Args:
        name: of the function.
        device: of the tensors; the kernels are for CUDA.
        gamma: focusing exponent of the focal loss; the kernels have 2 alone.
        *arguments: of the function.
    """
    global _works
    if not (_works and device.type == "cuda" and gamma == 2):
        return None
    try:
        from . import triton_kernels

        return getattr(triton_kernels, name)(*arguments)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        _works = False
        logging.getLogger(__name__).warning(
            "Matching cost and focal loss are computed step by step, without Triton: %s", error
        )
        return None
