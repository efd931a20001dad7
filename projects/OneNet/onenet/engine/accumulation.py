"""Gradient accumulation: a batch that does not fit goes through the model in pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..utils.errors import ConfigError

__all__ = ["AccumulatingModel", "accumulate_gradients"]


class AccumulatingModel(nn.Module):
    """For a trainer in the place of its model: the same losses and gradients, in less memory.

    All pieces but the last are followed by their own backward pass; that of the last is left to
    the trainer, which must not set the gradients to zero in between.

    The losses of a piece weigh as much as its share of the batch: of its objects, where the model
    has a method ``num_objects(batched_inputs)``, else of its images. So the losses of OneNet that
    are divided by the number of objects are those of the whole batch. Others come close: its
    one-to-many losses are divided by the number of matched samples, a piece at a time, those of
    Detectron2's detectors by an average that moves with each piece; and batch norm, where it is
    trained, sees a piece at a time. In evaluation the model is called as it is.
    """

    def __init__(self, module: nn.Module, num_pieces: int, backward: Callable[[Tensor], None]):
        """
        Args:
            module: what the trainer trains; with several workers wrapped in DDP.
            num_pieces: of a worker's batch, with as many images each, or one more.
            backward: of a loss.
        """
        super().__init__()
        self.module = module
        self.num_pieces = num_pieces
        self._backward = backward

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: at least ``num_pieces`` of what the model takes.

        Returns:
            In training the losses of the batch; the gradient of their sum is that of the last
            piece alone.

        Raises:
            ValueError: there are fewer images than pieces.
        """
        if not self.training:
            return self.module(batched_inputs)
        if len(batched_inputs) < self.num_pieces:
            raise ValueError(
                f"A batch of {len(batched_inputs)} images cannot be cut into the"
                f" {self.num_pieces} pieces of SOLVER.GRADIENT_ACCUMULATION_STEPS."
            )
        count, pieces = self.num_pieces, []
        for i in range(count):
            start, end = (len(batched_inputs) * k // count for k in (i, i + 1))
            pieces.append(batched_inputs[start:end])
        shares = self._shares(pieces)
        total: dict[str, Tensor] = {}
        for i, (piece, share) in enumerate(zip(pieces, shares, strict=True)):
            is_last = i + 1 == count
            with contextlib.nullcontext() if is_last else self._without_exchange():
                losses = self.module(piece)
                if isinstance(losses, Tensor):
                    losses = {"total_loss": losses}
                losses = {name: loss * share for name, loss in losses.items()}
                if not is_last:
                    with torch.autocast(next(iter(losses.values())).device.type, enabled=False):
                        self._backward(sum(losses.values()))
                    losses = {name: loss.detach() for name, loss in losses.items()}
            total |= {name: loss + total.get(name, 0) for name, loss in losses.items()}
        return total

    def _without_exchange(self) -> contextlib.AbstractContextManager:
        """Workers exchange their gradients once a step."""
        if isinstance(self.module, DistributedDataParallel):
            return self.module.no_sync()
        return contextlib.nullcontext()

    def _shares(self, pieces: list[list[dict]]) -> Tensor:
        """The weight of each piece's losses, (num_pieces,), the same in all workers."""
        model = getattr(self.module, "module", self.module)  # that in DDP
        count = getattr(model, "num_objects", len)
        device = next(self.module.parameters()).device
        counts = torch.tensor([float(count(piece)) for piece in pieces], device=device)
        if comm.get_world_size() > 1:
            dist.all_reduce(counts)
        return counts.clamp(min=1) / counts.sum().clamp(min=1)


def accumulate_gradients(trainer: SimpleTrainer, cfg: CfgNode) -> None:
    """Has a trainer send batches through the model in SOLVER.GRADIENT_ACCUMULATION_STEPS pieces.

    Iterations, batches, learning rate and checkpoints stay what they are.

    Args:
        trainer: Detectron2's inner one; an AMPTrainer as well.
        cfg: the key's value 1 leaves the trainer as it is.

    Raises:
        ConfigError: there are more pieces than images in a worker's batch, or fewer than one.
    """
    count = cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS
    images = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    if not 1 <= count <= images:
        raise ConfigError(
            f"SOLVER.GRADIENT_ACCUMULATION_STEPS is {count}; give a number from 1 to {images}, the"
            " images of a worker's batch (SOLVER.IMS_PER_BATCH by the number of workers)."
        )
    if count == 1:
        return
    scaler = getattr(trainer, "grad_scaler", None)

    def backward(loss: Tensor) -> None:
        (loss if scaler is None else scaler.scale(loss)).backward()

    trainer.model = AccumulatingModel(trainer.model, count, backward)
    trainer.zero_grad_before_forward = True
