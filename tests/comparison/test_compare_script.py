"""tools/compare.py itself: killed in the middle, continued, and started a third time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.WARMUP_ITERS", "2"),
    *("SOLVER.CHECKPOINT_PERIOD", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)"),
    *("INPUT.MIN_SIZE_TEST", "64"),
]


def command(out: Path, *words: str) -> list[str]:
    return [
        *(sys.executable, "-W", "ignore", "tools/compare.py"),
        "configs/digits/onenet_fcos_R18_FPN.yaml",
        "configs/digits/baseline_fcos_R18_FPN.yaml",
        *("--output", str(out), "--images", "2", "--speed-rounds", "2"),
        *("--set", *TINY, *words),
    ]


@pytest.mark.slow
def test_killed_continued_and_done(data_opts, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = command(out, *data_opts, "SOLVER.MAX_ITER", "30")
    first = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    seed = out / "runs" / "onenet_fcos_R18_FPN" / "seed1"
    deadline = time.monotonic() + 300
    while not (seed / "last_checkpoint").is_file():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (seed / "done.json").is_file() and not (out / "comparison.json").is_file()

    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert second.returncode == 0, second.stdout + second.stderr
    log = (seed / "log.txt").read_text()
    assert log.count("Starting training from iteration 0") == 1
    assert log.count("Starting training from iteration") == 2
    for name in ("comparison.html", "comparison.md", "comparison.json"):
        assert (out / name).is_file()
    text = (out / "comparison.md").read_text()
    assert "baseline_fcos_R18_FPN | NMS off" in text and "ms an image" in text

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != ".lock"}
    third = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert third.returncode == 0 and "Nothing to do" in third.stdout
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != ".lock"} == before

    # Other settings in the same folder
    words = command(out, *data_opts, "SOLVER.MAX_ITER", "31")
    other = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert other.returncode == 1 and "SOLVER.MAX_ITER was 30, now 31" in other.stderr
    assert "Traceback" not in other.stderr
