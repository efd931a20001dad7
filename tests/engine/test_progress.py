"""The progress bar, on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.engine import TrainerBase, hooks
from detectron2.utils.events import CommonMetricPrinter
from tiny_runs import CONFIG, TINY

from onenet.engine import Trainer, load_config
from onenet.engine.progress import ProgressBar


class Terminal:
    """A pseudo-terminal, as ``sys.stdout`` and ``sys.stderr``."""

    def __init__(self, columns: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.file = os.fdopen(slave, "w")
        self._raw = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._master, 4096):
                self._raw += piece
        except OSError:  # how Linux ends a pseudo-terminal
            pass

    def end(self) -> None:
        """Waits for all that was written."""
        self.file.close()
        self._reader.join()
        os.close(self._master)

    def text(self) -> str:
        """All that was written, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self._raw.decode())

    def lines(self) -> list[str]:
        """The lines that are on the screen at the end."""
        screen: list[str] = []
        for line in self.text().split("\n"):
            cells: list[str] = []
            for piece in line.split("\r"):
                cells[: len(piece)] = piece
            screen.append("".join(cells).rstrip())
        return [line for line in screen if line]


@contextlib.contextmanager
def on_terminal(columns: int = 120) -> Iterator[Terminal]:
    """Writes loggers, output and errors to a pseudo-terminal."""
    found = Terminal(columns)
    handler = logging.StreamHandler(found.file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", found.file)
        patch.setattr(sys, "stderr", found.file)
        for name in ("onenet", "detectron2"):
            patch.setattr(logging.getLogger(name), "handlers", [handler])
            patch.setattr(logging.getLogger(name), "level", logging.INFO)
        yield found
        assert handler.stream is sys.stdout is found.file and not handler.filters
    found.end()


class Steps(TrainerBase):
    """Counts, and says something now and then."""

    def run_step(self) -> None:
        self.storage.put_scalar("total_loss", 1 / (self.iter + 1))
        if self.iter == 10:
            logging.getLogger("onenet.engine").info("a line of a logger")
        if self.iter == 20:
            print("a printed", "line")
            print("a warning", file=sys.stderr)
        if self.iter == 30 and self.max_iter == 99:
            raise RuntimeError("broken")


def run(max_iter: int = 100, start_iter: int = 0) -> None:
    trainer = Steps()
    trainer.start_iter = start_iter
    writers = hooks.PeriodicWriter([CommonMetricPrinter(max_iter)], period=20)
    trainer.register_hooks([ProgressBar(), writers])
    trainer.train(start_iter, max_iter)


def test_one_line_is_updated_in_place() -> None:
    with on_terminal() as terminal:
        run()
        print("after the training")
    first, *said, bar, after = terminal.lines()
    assert first == "Starting training from iteration 0"
    assert said == ["a line of a logger", "a printed line", "a warning"]
    assert re.match(r"100%\|█+\| 100/100 \[00:0\d<00:0\d, .*it/s, loss 0.01\d+\]$", bar)
    assert after == "after the training"


def test_an_error_is_told_above_the_line() -> None:
    with on_terminal() as terminal, pytest.raises(RuntimeError, match="broken"):
        run(max_iter=99)
    *said, error, bar, metrics = terminal.lines()
    assert "a warning" in said and error == "RuntimeError: broken"
    assert "30/99" in bar and "iter: 30" in metrics  # Detectron2's, after the training


def test_a_resumed_run_goes_on_where_it_was() -> None:
    with on_terminal() as terminal:
        run(start_iter=50)
    assert "| 50/100 [" in terminal.text() and " 0/100" not in terminal.text()


def test_a_training_shows_its_metric(data_opts, tmp_path: Path) -> None:
    words = [*data_opts, *TINY, "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"]
    words += ["TEST.BEST_METRIC", "bbox/AP50", "OUTPUT_DIR", str(tmp_path)]
    cfg = load_config(CONFIG, words)
    with on_terminal() as terminal:
        Trainer(cfg).train()
    text = terminal.text()
    assert re.search(r"[34]/4 \[[^\r]*loss [\d.]+, bbox/AP50 \S+ \(best \S+\)\]", text)
    assert "eta:" not in text and "Average Precision" in text


def test_no_bar_without_a_terminal(data_opts, tmp_path: Path) -> None:
    words = [*data_opts, *TINY, "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(tmp_path)]
    trainer = Trainer(load_config(CONFIG, [*words, "TEST.EVAL_PERIOD", "0"]))
    assert not any(isinstance(hook, ProgressBar) for hook in trainer._hooks)
    with on_terminal(columns=0):
        assert not any(isinstance(hook, ProgressBar) for hook in trainer.build_hooks())
