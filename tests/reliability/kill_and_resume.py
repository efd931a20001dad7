#!/usr/bin/env python
"""Kills short trainings again and again, and sees that each of them can be resumed.

python tests/reliability/kill_and_resume.py --points 1000 --minutes 20 --seed 0

A run is started, killed, resumed, killed, ... until it ends; then its weights, their average and
the optimiser have to be those of a run that nothing happened to, to the bit, and another run is
started. Every other kill is at a random moment (of importing the config, building the model,
training, saving, logging or evaluating), the others at a random event of writing files whole: in
the middle of one of the writes of a checkpoint, or before its fsync or renaming. A kill is
SIGKILL. Exit code 1 if a run did not go on, or ended with other weights.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fault_injection
import short_runs

TIMEOUT = 300  # seconds, for a run that nothing was done to


def phase(output: Path, start: float) -> str:
    """What a run that was killed had come to; `start` is when it began, as time.time()."""
    if any(path.stat().st_mtime >= start for path in output.glob("*.tmp")):
        return "saving"
    printed = short_runs.terminal(output) if (output / "terminal.txt").is_file() else ""
    last = printed.rsplit("Command line arguments", 1)[-1]
    if "Start inference" in last:
        return "evaluation"
    return "training" if "Starting training" in last else "set-up"


class Trials:
    """Runs that are killed, and what came of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._runs = short_runs.Runs(short_runs.make_set(folder / "set"))
        self.kills: Counter[str] = Counter()  # by phase
        self.resumed = self.ended = self.refused = self.differ = 0
        reference = folder / "undisturbed"
        self._runs.finish(reference, timeout=TIMEOUT)  # reads all files for the first time
        # All keys: configs may be edited while this goes on
        self._runs.config_file = folder / "config.yaml"
        shutil.move(reference / "config.yaml", self._runs.config_file)
        shutil.rmtree(reference)
        start = time.monotonic()
        if self._runs.finish(reference, timeout=TIMEOUT) != 0:
            sys.exit(f"error: the undisturbed run failed:\n{short_runs.terminal(reference)}")
        self._seconds = time.monotonic() - start
        self._expected = short_runs.tensors(reference)
        # A write for each tensor of each checkpoint, and some
        num_checkpoints = short_runs.MAX_ITER // short_runs.PERIOD + 1
        self._num_events = num_checkpoints * (len(self._expected) + 6)

    def one_run(self, points: int, deadline: float) -> None:
        """Starts a run, and kills and resumes it until it ends, or there were kills enough."""
        output = self._folder / "run"
        shutil.rmtree(output, ignore_errors=True)
        is_first = True
        while not self._is_enough(points, deadline):
            began = time.time()
            code = self._start_and_kill(output, resume=not is_first)
            if not is_first and code in (0, -signal.SIGKILL):
                self.resumed += 1
            if code == -signal.SIGKILL:
                self.kills[phase(output, began)] += 1
                is_first = False
                continue
            break
        else:
            code = self._runs.finish(output, resume=True, timeout=TIMEOUT)
            self.resumed += 1
        if code != 0:
            self.refused += 1
            print(f"exit code {code}:\n{short_runs.terminal(output)[-2000:]}", flush=True)
        else:
            self.ended += 1
            if wrong := short_runs.differences(short_runs.tensors(output), self._expected):
                self.differ += 1
                print(f"{len(wrong)} tensors differ, the first: {wrong[0]}", flush=True)

    def _is_enough(self, points: int, deadline: float) -> bool:
        return self.kills.total() >= points or time.monotonic() > deadline

    def _start_and_kill(self, output: Path, resume: bool) -> int:
        if self.kills.total() % 2:
            number = self._random.randrange(self._num_events)
            plant = {"before": fault_injection.die_at_event, "given": (number,)}
            return self._runs.finish(output, resume=resume, timeout=TIMEOUT, **plant)
        process: BaseProcess = self._runs.start(output, resume=resume)
        process.join(self._random.uniform(0, 1.2 * self._seconds))
        process.kill()
        process.join()
        return process.exitcode

    def report(self, seconds: float) -> str:
        """The counts."""
        by_phase = ", ".join(f"{count} in {name}" for name, count in self.kills.most_common())
        return (
            f"{self.kills.total()} kills ({by_phase}) in {self.ended + self.refused} runs,"
            f" {seconds / 60:.1f} minutes, {platform.machine()}, {os.cpu_count()} cores\n"
            f"{self.resumed} starts with --resume; could not go on: {self.refused}\n"
            f"runs that ended: {self.ended}; with other weights than undisturbed: {self.differ}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1000, help="kills in all")
    parser.add_argument("--minutes", type=float, default=20, help="no more kills after these")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), args.seed)
        start = time.monotonic()
        deadline = start + 60 * args.minutes
        told = 0
        while trials.kills.total() < args.points and time.monotonic() < deadline:
            trials.one_run(args.points, deadline)
            if trials.kills.total() >= told + 100:
                told = trials.kills.total()
                print(f"{told} kills, {time.monotonic() - start:.0f} s", flush=True)
        print(trials.report(time.monotonic() - start))
    if trials.refused or trials.differ:
        sys.exit(1)


if __name__ == "__main__":
    main()
