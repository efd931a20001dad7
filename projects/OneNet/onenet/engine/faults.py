"""One-line errors for NaN losses, full disks and lost processes."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import Tensor, nn

from ..data.loaders import TrainLoader
from ..utils.errors import ConfigError, DataError, TrainingError
from ..utils.files import cannot_write, whole_file
from .accumulation import AccumulatingModel

__all__ = ["LossGuard", "NamedWriter", "log_file", "naming_faults", "tell_once_of_lost_logs"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_NO_PERMISSION = (errno.EACCES, errno.EPERM)
_MAX_NAMES = 8  # images named in an error
_EVENTS = "TensorBoard's events"


class LossGuard(HookBase):
    """Ends a run before the step of a NaN or infinite loss, and saves its inputs and weights.

    For the inner trainer of Detectron2's DefaultTrainer. Each worker checks its own losses and
    names its own images.
    """

    def __init__(self, model: nn.Module, loader: TrainLoader, output_dir: str) -> None:
        """
        Args:
            model: the model that the trainer calls, DDP included; returns a dict of losses.
            loader: has the last batch.
            output_dir: for ``nonfinite_iteration_<n>.pth``, which can be MODEL.WEIGHTS and be read
                with ``weights_only``: "model" (weights before the step), "iteration", "losses"
                (name -> value), and for each image "file_names", "images" (C, H, W), "boxes"
                (n, 4), "classes" (n,).
        """
        self._model = model
        self._loader = loader
        self._output_dir = output_dir
        self._losses: dict[str, Tensor] = {}
        model.register_forward_hook(self._remember)

    def _remember(self, model: nn.Module, _: Any, output: Any) -> None:
        if model.training:
            self._losses = output

    def after_backward(self) -> None:
        """See :class:`detectron2.engine.HookBase`.

        Raises:
            TrainingError: a loss is NaN or infinite; the step was not made.
        """
        values = torch.stack([loss.detach().float() for loss in self._losses.values()])
        if values.isfinite().all():
            return
        losses = dict(zip(self._losses, values.tolist(), strict=True))
        iteration, names = self.trainer.iter, [s["file_name"] for s in self._loader.batch]
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        told = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        sound = all(weights.isfinite().all() for weights in self._model.parameters())
        why = (
            "The weights were finite until then"
            if sound
            else "The step before had already made weights NaN or infinite"
        )
        raise TrainingError(
            f"The loss became NaN or infinite at iteration {iteration} ({told}), on the images"
            f" {', '.join(names[:_MAX_NAMES])}{more}. {why}; {self._keep(iteration, losses)}. Look"
            " at these images and their boxes, or lower SOLVER.BASE_LR, and go on with --resume."
        )

    def _keep(self, iteration: int, losses: dict[str, float]) -> str:
        """Saves the file; returns a clause about it for the error."""
        rank = f"_worker{comm.get_rank()}" if comm.get_rank() else ""
        name = f"nonfinite_iteration_{iteration:07d}{rank}.pth"
        path = os.path.join(self._output_dir, name)
        model = self._model
        while isinstance(model, (AccumulatingModel, nn.parallel.DistributedDataParallel)):
            model = model.module
        batch = self._loader.batch
        content = {
            "model": model.state_dict(),
            "iteration": iteration,
            "losses": losses,
            "file_names": [sample["file_name"] for sample in batch],
            "images": [sample["image"] for sample in batch],
            "boxes": [sample["instances"].gt_boxes.tensor for sample in batch],
            "classes": [sample["instances"].gt_classes for sample in batch],
        }
        try:
            with whole_file(path) as file:
                torch.save(content, file)
        except OSError as error:
            return f"they could not be kept, as {path} cannot be written ({error.strerror})"
        return f"they, the losses and the batch are kept in {path}"


class NamedWriter(EventWriter):
    """A metrics writer whose errors name the file; it writes nothing after the first error."""

    def __init__(self, writer: EventWriter, output_dir: str) -> None:
        """
        Args:
            writer: Detectron2's.
            output_dir: its output folder.
        """
        self._writer = writer
        self._broken = False
        self._path = ""  # "" for writers that print
        if isinstance(writer, JSONWriter):
            self._path = os.path.join(output_dir, "metrics.json")
        elif isinstance(writer, TensorboardXWriter):
            self._path = os.path.join(output_dir, _EVENTS)

    def write(self) -> None:
        """See Detectron2's.

        Raises:
            TrainingError: the file cannot be written.
        """
        self._call(self._writer.write)

    def close(self) -> None:
        """See Detectron2's."""
        self._call(self._writer.close)

    def _call(self, method: Any) -> None:
        if self._broken:
            return
        try:
            method()
        except OSError as error:
            self._broken = True
            if not self._path:
                raise
            raise cannot_write(self._path, error) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes and contexts, newest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_fault(error: BaseException | None, is_told: bool = False) -> BaseException | None:
    """The oldest error with a message for users that no later error's message reports."""
    if error is None:
        return None
    has_sentence = isinstance(error, (ConfigError, DataError, TrainingError))
    earlier = _first_fault(error.__cause__, is_told or has_sentence)
    if error.__context__ is not error.__cause__:
        earlier = _first_fault(error.__context__) or earlier
    return earlier or (error if has_sentence and not is_told else None)


def _is_unwritable(error: OSError, output_dir: str) -> bool:
    if error.errno not in _NO_PERMISSION:
        return error.errno in _NO_ROOM
    # Elsewhere the error may be about reading
    folder = os.path.join(os.path.abspath(output_dir), "")
    return isinstance(error.filename, str) and os.path.abspath(error.filename).startswith(folder)


def _is_lost_worker(error: BaseException) -> bool:
    if comm.get_world_size() == 1:
        return False  # torch may be built without distributed training
    backend = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
    of_gloo = type(error) is RuntimeError and "gloo" in str(error).lower()
    return of_gloo or isinstance(error, backend)


def _is_lost_loader(error: BaseException) -> bool:
    return type(error) is RuntimeError and str(error).startswith("DataLoader worker (pid")


def _brief(error: BaseException) -> str:
    """The first sentence of a message, without the source location."""
    return re.sub(r"^\[\S*\] ", "", str(error)).split(". ")[0].splitlines()[0]


@contextlib.contextmanager
def _unwritten_by_threads(output_dir: str) -> Iterator[list[OSError]]:
    """Collects write errors of TensorBoard's threads, which would only print a traceback."""
    errors: list[OSError] = []
    before = threading.excepthook

    def keep(given: threading.ExceptHookArgs) -> None:
        error = given.exc_value
        is_tensorboards = type(given.thread).__module__.startswith("tensorboard.")
        if is_tensorboards and isinstance(error, OSError) and _is_unwritable(error, output_dir):
            errors.append(error)
        else:
            before(given)

    threading.excepthook = keep
    try:
        yield errors
    finally:
        threading.excepthook = before


@contextlib.contextmanager
def naming_faults(output_dir: str) -> Iterator[None]:
    """Turns the errors of a full disk or a lost process into a :class:`TrainingError`.

    Args:
        output_dir: output folder of the run.

    Raises:
        TrainingError: such an error. Of several errors with a message for users, the first is
            raised.
    """
    try:
        with _unwritten_by_threads(output_dir) as errors:
            yield
        if errors:
            raise cannot_write(os.path.join(output_dir, _EVENTS), errors[0]) from errors[0]
    except Exception as error:
        first = _first_fault(error)
        if first is error:
            raise
        if first is not None:
            raise first from None
        for cause in _chain(error):
            if isinstance(cause, OSError) and _is_unwritable(cause, output_dir):
                path = cause.filename or f"A file below {output_dir}"
                raise cannot_write(str(path), cause) from error
            if _is_lost_worker(cause):
                raise TrainingError(
                    f"Another worker of this run has ended, or cannot be reached ({_brief(cause)})."
                    " Its own output has the cause; start all workers again with --resume."
                ) from error
            if _is_lost_loader(cause):
                raise TrainingError(
                    f"A process that loads images has ended ({_brief(cause)}); the system does that"
                    " where memory, or the shared memory /dev/shm, runs out. Lower"
                    " DATALOADER.NUM_WORKERS, and go on with --resume."
                ) from error
        raise


def tell_once_of_lost_logs() -> None:
    """Makes loggers warn once, without a traceback, if their file cannot be written.

    The run continues, since the log also goes to the terminal.
    """
    told: set[str] = set()

    def tell_once(path: str, _: logging.LogRecord) -> None:
        if path not in told:
            told.add(path)
            reason = sys.exc_info()[1]
            print(
                f"warning: {path} cannot be written ({reason}); the log goes on here alone.",
                file=sys.stderr,
            )

    for name in ("detectron2", "fvcore", "onenet"):
        for handler in logging.getLogger(name).handlers:
            if path := log_file(handler):
                handler.handleError = functools.partial(tell_once, path)


def log_file(handler: logging.Handler) -> str:
    """Path of the file that a logger's handler writes; "" if it is none, such as the terminal."""
    path = str(getattr(getattr(handler, "stream", None), "name", "<stdout>"))
    return "" if path.startswith("<") else path
