"""Gathering of lists from all processes."""

from __future__ import annotations

import itertools
from typing import TypeVar

from detectron2.utils import comm

__all__ = ["gather_lists"]

T = TypeVar("T")


def gather_lists(items: list[T], distributed: bool = True) -> list[T] | None:
    """Joins the lists of all processes.

    Args:
        items: of this process.
        distributed: False to return the items unchanged.

    Returns:
        The items of all processes in order; None in all but the main process.
    """
    if not distributed:
        return items
    comm.synchronize()
    gathered = comm.gather(items, dst=0)
    return list(itertools.chain(*gathered)) if comm.is_main_process() else None
