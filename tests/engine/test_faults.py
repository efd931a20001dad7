"""Which of several errors ends a run, and its sentence; tests/reliability has the faults."""

from __future__ import annotations

import errno
import threading

import pytest
import torch
from detectron2.utils.events import EventWriter, JSONWriter

from onenet.engine.faults import NamedWriter, naming_faults
from onenet.utils.errors import ConfigError, DataError, TrainingError


def test_the_first_fault_is_told() -> None:
    """What is raised on top of it while the run ends, as it closes files, is not."""
    with pytest.raises(DataError, match="^broken image$"), naming_faults("out"):
        try:
            raise DataError("broken image") from ValueError("decoder")
        finally:
            raise TrainingError("cannot close") from OSError(errno.ENOSPC, "full")


def test_a_sentence_is_preferred_to_its_causes() -> None:
    with pytest.raises(ConfigError, match="^whole sentence$"), naming_faults("out"):
        try:
            raise DataError("a part of it")
        except DataError as error:
            raise ConfigError("whole sentence") from error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "full", "out/a"), r"^out/a cannot be written \(full\)"),
        (OSError(errno.EACCES, "denied", "out/a"), r"^out/a cannot be written \(denied\)"),
        (OSError(errno.EDQUOT, "quota"), r"^A file below out cannot be written \(quota\)"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), "loads images"),
    ],
)
def test_system_errors_get_a_sentence(error: Exception, told: str) -> None:
    with pytest.raises(TrainingError, match=told), naming_faults("out"):
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("of a library") from cause


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "no such file", "a"),
        OSError(errno.EACCES, "denied", "elsewhere/a"),
        RuntimeError("gloo"),
        KeyError("a"),
    ],
)
def test_others_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming_faults("out"):
        raise error
    assert caught.value is error


def test_a_torch_without_distributed_training(monkeypatch) -> None:
    for name in ("DistBackendError", "DistNetworkError"):
        monkeypatch.delattr(torch.distributed, name)
    test_others_stay_as_they_are(KeyError("a"))


def test_a_writer_is_named_after_its_file(tmp_path) -> None:
    class Printer(EventWriter):
        def write(self) -> None:
            raise BrokenPipeError

    class Json(JSONWriter):
        def write(self) -> None:
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(BrokenPipeError):
        NamedWriter(Printer(), "out").write()
    with pytest.raises(TrainingError, match=r"^out/metrics\.json cannot be written"):
        NamedWriter(Json(str(tmp_path / "metrics.json")), "out").write()


class _Writer(threading.Thread):
    """A thread of TensorBoard's, by its module."""

    __module__ = "tensorboard.summary.writer"

    def run(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


class _Other(threading.Thread):
    run = _Writer.run


def test_what_tensorboards_thread_cannot_write_ends_the_run(monkeypatch) -> None:
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)

    def die(thread: threading.Thread) -> None:
        with naming_faults("out"):
            thread.start()
            thread.join()

    with pytest.raises(TrainingError, match=r"^out/TensorBoard's events cannot be written \(No"):
        die(_Writer())
    assert not printed
    die(_Other())  # which is its owner's business
    assert len(printed) == 1
    assert threading.excepthook == printed.append
