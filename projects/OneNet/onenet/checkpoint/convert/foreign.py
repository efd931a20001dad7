"""Recognition and conversion of other projects' weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ...modeling.heads.dense_head import DenseHead
from .base import Conversion, check_trained_input
from .detectron2_retinanet import convert_detectron2_retinanet, is_detectron2_retinanet
from .efficientnet_lite import convert_efficientnet_lite, is_efficientnet_lite
from .original import convert_original, is_original
from .torchvision_fcos import convert_torchvision_fcos, is_torchvision_fcos
from .torchvision_resnet import convert_torchvision_resnet, is_torchvision_resnet

__all__ = ["convert_foreign"]


def convert_foreign(
    state: Mapping[str, Tensor], model: nn.Module, input_format: str | None = None
) -> Conversion | None:
    """Converts the weights of another project for a model.

    Args:
        state: the file's state dict.
        model: to fill.
        input_format: INPUT.FORMAT; None for the model's attribute, or RGB without one.

    Returns:
        The conversion; None if the names are of no known project.

    Raises:
        ConfigError: the weights cannot be this model's. The message completes the caller's
            sentence.
    """
    if is_original(state):
        # Trained from torchvision's weights, with the same input
        check_trained_input(model, "the authors' weights", input_format)
        generator = getattr(getattr(model, "head", None), "anchor_generator", None)
        anchors = None if generator is None else list(generator.cell_anchors)
        return convert_original(state, anchors)
    if is_torchvision_fcos(state):
        return convert_torchvision_fcos(state, model, input_format)
    # Detectron2's own models take its names as they are
    if isinstance(getattr(model, "head", None), DenseHead) and is_detectron2_retinanet(state):
        return convert_detectron2_retinanet(state, model, input_format)
    if is_torchvision_resnet(state):
        return convert_torchvision_resnet(state, model, input_format)
    if is_efficientnet_lite(state):
        return convert_efficientnet_lite(state, model, input_format)
    return None
