"""Switching off a detector's NMS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from ..modeling.meta_arch import OneNet

__all__ = ["carries_nms", "without_nms"]


def _thresholds(model: nn.Module) -> Iterator[tuple[nn.Module, str, float | None]]:
    """The module, attribute name and "off" value of each NMS threshold of detections.

    An RPN's ``nms_thresh`` is for proposals and not included.
    """
    for module in model.modules():
        if isinstance(module, OneNet):
            yield module, "nms_thresh", None
        elif hasattr(module, "test_nms_thresh"):
            yield module, "test_nms_thresh", 1.0  # NMS removes boxes with an IoU above it


def carries_nms(model: nn.Module) -> bool:
    """Whether a detector applies NMS to its detections.

    Args:
        model: OneNet, or a Detectron2 detector with an attribute ``test_nms_thresh`` (RetinaNet,
            FCOS, R-CNN); may be wrapped in DDP.
    """
    return any(getattr(module, name) != off for module, name, off in _thresholds(model))


@contextlib.contextmanager
def without_nms(model: nn.Module) -> Iterator[None]:
    """Context in which a model's NMS is off.

    Args:
        model: see :func:`carries_nms`; may have no NMS.
    """
    before = [(module, name, getattr(module, name)) for module, name, _ in _thresholds(model)]
    try:
        for module, name, off in _thresholds(model):
            setattr(module, name, off)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
