"""A short version of kill_and_resume.py, whose long one is in docs/reliability.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


@pytest.mark.slow
def test_kill_and_resume_at_some_points() -> None:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--points", "24", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.startswith("24 kills (")
    assert "could not go on: 0\n" in done.stdout
    assert "with other weights than undisturbed: 0\n" in done.stdout
