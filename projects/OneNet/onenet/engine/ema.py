"""Exponential moving average of the weights, for evaluation and checkpoints."""

from __future__ import annotations

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["EMAHook"]


class EMAHook(HookBase):
    """Updates the average after every step: average = d * average + (1 - d) * weights.

    The first step copies. At step n > 0, d is min(decay, (1 + n) / (10 + n)), so that the average
    of a short training does not stay near its random start. Floating-point buffers, such as batch
    norm statistics, are averaged too; others are copied. Each worker averages its own copy: weights
    are equal, batch norm statistics are not. The main process's average is saved.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: the trained model, not wrapped in DDP.
            decay: in (0, 1).
        """
        self.model = model
        self.decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)

    @property
    def average(self) -> nn.Module:
        """The averaged model, of the same class and with the same keys as the trained one."""
        return self._averaged.module

    @property
    def steps(self) -> int:
        """Number of averaged steps."""
        return int(self._averaged.n_averaged)

    def after_step(self) -> None:
        """See :class:`detectron2.engine.HookBase`."""
        self._averaged.update_parameters(self.model)

    def state_dict(self) -> dict[str, Tensor]:
        """Trained weights and number of steps; the average is saved as the checkpoint's model."""
        return {"steps": self._averaged.n_averaged, **self.model.state_dict(prefix="model.")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the result of :meth:`state_dict`."""
        self._averaged.n_averaged.copy_(state["steps"])
        self.model.load_state_dict(
            {key[len("model.") :]: value for key, value in state.items() if key != "steps"}
        )

    def _average(self, averages: list[Tensor], weights: list[Tensor], _: Tensor) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, weights)
            return
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(averages, weights, 1 - decay)
