"""Gradient accumulation, for batches that do not fit into memory."""

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
    """Wraps a trainer's model to run each batch in pieces.

    Runs the backward pass of every piece but the last, whose backward pass is the trainer's. The
    trainer must not zero the gradients in between. In evaluation the model is called unchanged.

    The losses of a piece are weighted by its share of the batch: of the objects, if the model has
    ``num_objects(batched_inputs)``, else of the images. So OneNet's one-to-one losses equal those
    of the whole batch. Others are approximate: one-to-many losses are divided by the matched
    samples of each piece, the losses of Detectron2's detectors by a moving average that each piece
    updates, the rescoring loss is a mean over each piece's candidates, and trained batch norm sees
    one piece at a time.
    """

    def __init__(self, module: nn.Module, num_pieces: int, backward: Callable[[Tensor], None]):
        """
        Args:
            module: the trained model; wrapped in DDP with several workers.
            num_pieces: number of pieces of a worker's batch; their sizes differ by at most one.
            backward: runs the backward pass of a loss.
        """
        super().__init__()
        self.module = module
        self.num_pieces = num_pieces
        self._backward = backward

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: at least ``num_pieces`` inputs of the model.

        Returns:
            In training the losses of the batch. Their backward pass is that of the last piece.
        """
        if not self.training:
            return self.module(batched_inputs)
        count, pieces = self.num_pieces, []
        for i in range(count):
            start, end = (len(batched_inputs) * k // count for k in (i, i + 1))
            pieces.append(batched_inputs[start:end])
        shares = self._shares(pieces)
        total: dict[str, Tensor] = {}
        for i, (piece, share) in enumerate(zip(pieces, shares, strict=True)):
            is_last = i + 1 == count
            with contextlib.nullcontext() if is_last else self._without_exchange():
                losses = {name: loss * share for name, loss in self.module(piece).items()}
                if not is_last:
                    with torch.autocast(next(iter(losses.values())).device.type, enabled=False):
                        self._backward(sum(losses.values()))
                    losses = {name: loss.detach() for name, loss in losses.items()}
            total |= {name: loss + total.get(name, 0) for name, loss in losses.items()}
        return total

    def _without_exchange(self) -> contextlib.AbstractContextManager:
        """Skips DDP's gradient exchange, which is needed once per step."""
        if isinstance(self.module, DistributedDataParallel):
            return self.module.no_sync()
        return contextlib.nullcontext()

    def _shares(self, pieces: list[list[dict]]) -> Tensor:
        """(num_pieces,) weight of each piece's losses, the same in all workers."""
        model = getattr(self.module, "module", self.module)  # unwraps DDP
        count = getattr(model, "num_objects", len)
        device = next(self.module.parameters()).device
        counts = torch.tensor([float(count(piece)) for piece in pieces], device=device)
        if comm.get_world_size() > 1:
            dist.all_reduce(counts)
        return counts.clamp(min=1) / counts.sum().clamp(min=1)


def accumulate_gradients(trainer: SimpleTrainer, cfg: CfgNode) -> None:
    """Makes a trainer run batches in SOLVER.GRADIENT_ACCUMULATION_STEPS pieces.

    Iterations, batches, learning rate and checkpoints do not change.

    Args:
        trainer: Detectron2's SimpleTrainer or AMPTrainer; unchanged if the key is 1.
        cfg: the config.

    Raises:
        ConfigError: the key is below 1, or above the number of images in a worker's batch.
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
