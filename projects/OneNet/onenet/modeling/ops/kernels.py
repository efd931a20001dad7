"""Dispatch to the Triton kernels."""

from __future__ import annotations

import logging
from typing import Any

import torch

__all__ = ["run_kernel"]

_works = True  # False after a failure


def run_kernel(name: str, device: torch.device, gamma: float, *arguments: Any) -> Any:
    """Calls a function of :mod:`onenet.modeling.ops.triton_kernels`; returns None if unavailable.

    After the first failure (no Triton, no C compiler, an old GPU), which is logged once, no kernel
    is used.

    Args:
        name: of the function.
        device: of the tensors; kernels run on CUDA only.
        gamma: focusing exponent of the focal loss; kernels support 2 only.
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
