"""Fault injection in a run's own process; see `before` of :class:`short_runs.Runs`."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine import DefaultTrainer
from tensorboard.summary.writer import record_writer
from torch.utils.data import get_worker_info

from onenet import evaluation
from onenet.data.mapper import OneNetDatasetMapper
from onenet.modeling.meta_arch import OneNet
from onenet.utils import files


def die(*_: Any, **__: Any) -> None:
    """SIGKILL: nothing is tidied up or flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def before_step(iteration: int, act: Callable[[DefaultTrainer], None]) -> None:
    """Has the trainer call something before the step of an iteration."""
    run_step = DefaultTrainer.run_step

    def run_and_act(trainer: DefaultTrainer) -> None:
        if trainer.iter == iteration:
            act(trainer)
        run_step(trainer)

    DefaultTrainer.run_step = run_and_act


def die_in_training(iteration: int) -> None:
    """Dies before the step of an iteration."""
    before_step(iteration, die)


def die_in_evaluation(num_images: int) -> None:
    """Dies in the first evaluation, behind so many images."""
    process, counts = evaluation.EndToEndEvaluator.process, []

    def process_or_die(self: Any, inputs: list, outputs: list) -> None:
        counts.append(len(inputs))
        if sum(counts) > num_images:
            die()
        process(self, inputs, outputs)

    evaluation.EndToEndEvaluator.process = process_or_die


class _DyingFile:
    """A file in the middle of whose write the process may die."""

    def __init__(self, path: str, mode: str, is_last: Callable[[str, str], bool]) -> None:
        self._path = path
        self._file = open(path, mode)
        self._is_last = is_last

    def write(self, content: Any) -> int:
        if self._is_last("write", self._path):
            content = memoryview(content).cast("B")
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            die()
        return self._file.write(content)

    def __enter__(self) -> _DyingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _watch_files(is_last: Callable[[str, str], bool]) -> None:
    """Dies in the middle of a write, or before another event, of files that are written whole.

    Args:
        is_last: whether that is to be, by event ("write", "fsync" or "replace") and path.
    """
    files.open = lambda path, mode: _DyingFile(path, mode, is_last)
    files.os = _DyingOs(is_last)


class _DyingOs:
    """The module os, in two functions of which the process may die."""

    def __init__(self, is_last: Callable[[str, str], bool]) -> None:
        self._is_last = is_last

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        if self._is_last("fsync", ""):
            die()
        os.fsync(descriptor)

    def replace(self, source: str, target: str) -> None:
        if self._is_last("replace", target):
            die()
        os.replace(source, target)


def die_at(event: str, file_name: str) -> None:
    """Dies at the first event of that kind of a file; see :func:`_watch_files`."""
    _watch_files(lambda kind, path: kind == event and os.path.basename(path) == file_name)


def die_at_event(number: int) -> None:
    """Dies at event `number`, from 0 on; see :func:`_watch_files`."""
    seen: list[str] = []

    def is_last(kind: str, _: str) -> bool:
        seen.append(kind)
        return len(seen) > number

    _watch_files(is_last)


def no_file_above(num_bytes: int) -> None:
    """A disk on which no file fits that is larger."""
    import resource  # which Windows does not have

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def loss_of(value: float, iteration: int) -> None:
    """Makes loss_l1 of an iteration another value."""
    forward = OneNet.forward

    def plant(_: DefaultTrainer) -> None:
        def forward_and_spoil(self: OneNet, batch: list) -> Any:
            losses = forward(self, batch)
            if self.training:
                OneNet.forward = forward
                losses["loss_l1"] = losses["loss_l1"] * 0 + value
            return losses

        OneNet.forward = forward_and_spoil

    before_step(iteration, plant)


def nan_loss_above(lr: float) -> None:
    """Makes the loss NaN wherever the learning rate is above a limit."""
    run_step, forward = DefaultTrainer.run_step, OneNet.forward

    def run(trainer: DefaultTrainer) -> None:
        is_above = any(group["lr"] > lr for group in trainer.optimizer.param_groups)

        def forward_and_spoil(self: OneNet, batch: list) -> Any:
            losses = forward(self, batch)
            if self.training and is_above:
                losses["loss_l1"] = losses["loss_l1"] * float("nan")
            return losses

        OneNet.forward = forward_and_spoil
        run_step(trainer)

    DefaultTrainer.run_step = run


def spoiled_weights(iteration: int) -> None:
    """Makes a weight NaN in the step of an iteration, whose loss is sound."""

    def plant(trainer: DefaultTrainer) -> None:
        step = trainer.optimizer.step

        def step_and_spoil(*args: Any, **kwargs: Any) -> None:
            step(*args, **kwargs)
            with torch.no_grad():
                next(trainer.model.parameters()).view(-1)[0] = float("nan")

        trainer.optimizer.step = step_and_spoil

    before_step(iteration, plant)


def no_room_for_events() -> None:
    """A disk that is full for TensorBoard's files alone."""

    def write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    record_writer.RecordWriter.write = write


def die_while_loading(image_id: int) -> None:
    """The process that loads an image dies; not the one that trains."""
    call = OneNetDatasetMapper.__call__

    def load_or_die(self: OneNetDatasetMapper, record: dict) -> dict:
        if record["image_id"] == image_id and get_worker_info() is not None:
            die()
        return call(self, record)

    OneNetDatasetMapper.__call__ = load_or_die
