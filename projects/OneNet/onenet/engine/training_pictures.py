"""Training images in TensorBoard."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage

from ..evaluation.inspection import inspect_assignment
from ..evaluation.inspection_pictures import draw_assignment
from ..modeling.meta_arch import OneNet

__all__ = ["TrainingPictures", "put_pictures"]


class TrainingPictures(HookBase):
    """Calls :func:`put_pictures` for an image of the current batch, periodically."""

    def __init__(self, model: OneNet, period: int) -> None:
        """
        Args:
            model: the trained model, without DDP.
            period: iterations between pictures.
        """
        self._model, self._period = model, period
        self._inputs: list[dict] = []

    def before_train(self) -> None:
        """Starts keeping an image of each batch."""
        self._handle = self._model.register_forward_pre_hook(self._keep)

    def after_train(self) -> None:
        """Stops keeping images."""
        self._handle.remove()

    def _keep(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if module.training:
            self._inputs = args[0][:1]

    def after_step(self) -> None:
        """Draws every ``period`` iterations."""
        if self.trainer.iter % self._period == 0:
            put_pictures(self._model, self._inputs)


@torch.no_grad()
def put_pictures(model: OneNet, batched_inputs: list[dict]) -> None:
    """Puts two pictures of an image into the event storage, without affecting the training.

    One shows ground truth and best detections; "assignment" shows each object's positive sample.

    Args:
        model: in training mode.
        batched_inputs: one image from the training mapper.
    """
    # Detectron2 draws random colours from the generator that augmentation may use
    random_state = np.random.get_state()
    model.eval()
    try:
        results = model(batched_inputs)
        assignments = inspect_assignment(model, batched_inputs[0])
        model.visualize_training(batched_inputs, [result["instances"] for result in results])
        image = batched_inputs[0]["image"].permute(1, 2, 0)
        picture = draw_assignment(assignments, convert_image_to_rgb(image, model.input_format))
    finally:
        model.train()
        np.random.set_state(random_state)
    get_event_storage().put_image("assignment", picture.transpose(2, 0, 1))
