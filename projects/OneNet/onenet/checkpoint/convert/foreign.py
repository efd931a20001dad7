"""Recognises whose weights a file holds."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .base import Conversion, check_trained_input
from .efficientnet_lite import convert_efficientnet_lite, is_efficientnet_lite
from .original import convert_original, is_original
from .torchvision_resnet import convert_torchvision_resnet, is_torchvision_resnet

__all__ = ["convert_foreign"]


def convert_foreign(
    state: Mapping[str, Tensor], model: nn.Module, input_format: str | None = None
) -> Conversion | None:
    """Converts weights for a model, where they are another project's.

    Args:
        state: names and tensors as the file has them.
        model: what they are for.
        input_format: INPUT.FORMAT; None for what the model says, RGB where it says nothing.

    Returns:
        None where the names are nobody's that is known here.

    Raises:
        ConfigError: they are, but cannot be this model's; a part of a sentence.
    """
    if is_original(state):
        # They started from torchvision's weights, and kept its input
        check_trained_input(model, "the authors' weights", input_format)
        generator = getattr(getattr(model, "head", None), "anchor_generator", None)
        anchors = None if generator is None else list(generator.cell_anchors)
        return convert_original(state, anchors)
    if is_torchvision_resnet(state):
        return convert_torchvision_resnet(state, model, input_format)
    if is_efficientnet_lite(state):
        return convert_efficientnet_lite(state, model, input_format)
    return None
