"""Whether the Triton kernels are used."""

from __future__ import annotations

import logging
from types import ModuleType

from torch import Tensor

__all__ = ["kernels_for", "without_kernels"]

_works = True  # until it has failed


def kernels_for(x: Tensor, gamma: float) -> ModuleType | None:
    """:mod:`onenet.triton_kernels` where it can be used, which needs Triton; else None.

    Args:
        x: whose device counts.
        gamma: focusing exponent of the focal loss; the kernels have 2 alone.
    """
    if not (_works and x.device.type == "cuda" and gamma == 2):
        return None
    try:
        from . import triton_kernels
    except Exception as error:  # there is no Triton, or a broken one
        without_kernels(error)
        return None
    return triton_kernels


def without_kernels(error: Exception) -> None:
    """Says that kernels fail (no Triton, no C compiler, an old GPU), and uses none from now on."""
    global _works
    _works = False
    logging.getLogger(__name__).warning(
        "Matching cost and focal loss are computed step by step, without Triton: %s", error
    )
