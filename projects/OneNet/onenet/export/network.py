"""The detector as one function of tensors, from pixels to boxes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..modeling.meta_arch import OneNet
from ..modeling.postprocess import select_top_k

__all__ = ["ExportableOneNet"]


class ExportableOneNet(nn.Module):
    """Normalisation, network, top-k and decoding of a :class:`onenet.modeling.meta_arch.OneNet`.

    Works on tensors instead of Detectron2's lists and Instances, so that it can be exported.
    """

    def __init__(self, model: OneNet, half: bool = False) -> None:
        """
        Args:
            model: with weights; is copied.
            half: whether backbone and head run in float16.
        """
        super().__init__()
        model = copy.deepcopy(model)
        self.dtype = torch.float16 if half else torch.float32
        self.register_buffer("mean", model.pixel_mean.view(-1, 1, 1).float())
        self.register_buffer("std", model.pixel_std.view(-1, 1, 1).float())
        self.backbone = model.backbone.to(self.dtype)
        self.head = model.head.to(self.dtype)
        self.rescoring = model.rescoring
        self.in_features = model.head_in_features
        self.max_detections = model.max_detections_per_image
        self.eval()

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: (N, H, W, 3) uint8, channels in the order of the model's ``input_format``; each
                image in the upper left corner. H and W are multiples of the backbone's
                ``size_divisibility``.
            image_sizes: (N, 2) int64, height and width of each image without its padding.

        Returns:
            boxes (N, k, 4) corners in pixels of the images, clipped to them, float32; scores (N, k)
            float32, best first; classes (N, k) int64.
        """
        # Channels first, since runtimes are slow where the last axis has three elements
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        height, width = images.shape[1], images.shape[2]
        in_rows = torch.arange(height, device=images.device) < image_sizes[:, :1]  # (N, H)
        in_columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]  # (N, W)
        inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        # Detectron2 pads with zeros after normalisation
        features = self.backbone((pixels * inside).to(self.dtype))
        predictions = self.head([features[name] for name in self.in_features])
        predictions = predictions._replace(pred_logits=predictions.pred_logits.float())
        scores, classes, boxes = select_top_k(predictions, self.max_detections, self.rescoring)
        height, width = image_sizes.to(boxes.dtype).unbind(1)
        limits = torch.stack((width, height, width, height), dim=1)[:, None]
        return torch.minimum(boxes.clamp(min=0), limits), scores, classes
