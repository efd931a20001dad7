"""Switching off a detector's NMS, to see how many duplicates it hides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from ..modeling.meta_arch import OneNet

__all__ = ["carries_nms", "without_nms"]


def _thresholds(model: nn.Module) -> Iterator[tuple[nn.Module, str, float | None]]:
    """The module, name and "off" value of each threshold of an NMS on the detections.

    An RPN's ``nms_thresh``, which is for proposals, is none of them.
    """
    for module in model.modules():
        if isinstance(module, OneNet):
            yield module, "nms_thresh", None
        elif hasattr(module, "test_nms_thresh"):
            yield module, "test_nms_thresh", 1.0  # NMS removes what has an IoU *above* it


def carries_nms(model: nn.Module) -> bool:
    """Whether NMS follows the detector.

    Args:
        model: OneNet, or a detector of Detectron2 that keeps its threshold in an attribute
            ``test_nms_thresh`` (RetinaNet, FCOS, the R-CNNs); may be wrapped, as by DDP.
    """
    return any(getattr(module, name) != off for module, name, off in _thresholds(model))


@contextlib.contextmanager
def without_nms(model: nn.Module) -> Iterator[None]:
    """Within it, the model's NMS suppresses nothing; afterwards all is as before.

    Args:
        model: see :func:`carries_nms`; one without NMS stays as it is.
    """
    before = [(module, name, getattr(module, name)) for module, name, _ in _thresholds(model)]
    try:
        for module, name, off in _thresholds(model):
            setattr(module, name, off)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
