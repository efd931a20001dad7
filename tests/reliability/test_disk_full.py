"""A disk that is full ends a run with one sentence that names the file, and spoils nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import fault_injection
import pytest
from short_runs import differences, error_of, tensors, terminal

FULL = Path("/dev/full")  # every write to it fails with ENOSPC
ROOM = "What was saved before is whole: make room"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full"),
]


def test_full_while_a_checkpoint_is_saved(runs, undisturbed: Path, tmp_path: Path) -> None:
    killed = {"before": fault_injection.die_in_training, "given": (5,)}
    assert runs.finish(tmp_path, **killed) == -signal.SIGKILL
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}
    assert list(before) == ["model_0000003.pth"]

    full = {"before": fault_injection.no_file_above, "given": (1_000_000,)}
    assert runs.finish(tmp_path, resume=True, **full) == 1
    error = error_of(tmp_path)
    assert f"{tmp_path / 'model_0000007.pth'} cannot be written (File too large)" in error
    assert ROOM in error and "--resume" in error
    assert "Traceback" not in terminal(tmp_path)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")} == before
    assert not list(tmp_path.glob("*.tmp"))  # which would hold the room that is wanted

    assert runs.finish(tmp_path, resume=True) == 0
    assert not differences(tensors(tmp_path), tensors(undisturbed))


def test_full_while_metrics_are_written(runs, undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").symlink_to(FULL)
    assert runs.finish(tmp_path) == 1
    error = error_of(tmp_path)
    assert f"{tmp_path / 'metrics.json'} cannot be written (No space left on device)" in error
    assert "Traceback" not in terminal(tmp_path)
    assert not differences(tensors(tmp_path), tensors(undisturbed))


def test_full_while_tensorboards_events_are_written(runs, tmp_path: Path) -> None:
    assert runs.finish(tmp_path, before=fault_injection.no_room_for_events) == 1
    error = error_of(tmp_path)
    assert f"{tmp_path}/TensorBoard's events cannot be written (No space left on device)" in error
    assert "Traceback" not in terminal(tmp_path)
    assert tensors(tmp_path)


def test_full_while_the_log_is_written(runs, undisturbed: Path, tmp_path: Path) -> None:
    """The terminal has it all the same: it is told once, and the run goes on."""
    (tmp_path / "log.txt").symlink_to(FULL)
    assert runs.finish(tmp_path) == 0
    warning = f"warning: {tmp_path / 'log.txt'} cannot be written ([Errno 28] No space left"
    assert terminal(tmp_path).count(warning) == 1
    assert "Traceback" not in terminal(tmp_path)
    assert not differences(tensors(tmp_path), tensors(undisturbed))


def test_full_while_detections_are_written(runs, undisturbed: Path, tmp_path: Path) -> None:
    """COCO's results file; the model is saved by then."""
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "coco_instances_results.json").symlink_to(FULL)
    assert runs.finish(tmp_path) == 1
    error = error_of(tmp_path)
    assert f"A file below {tmp_path} cannot be written (No space left on device)" in error
    assert not differences(tensors(tmp_path), tensors(undisturbed))


def test_full_from_the_start(runs, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").symlink_to(FULL)
    assert runs.finish(tmp_path) == 1
    assert f"A file below {tmp_path} cannot be written" in error_of(tmp_path)
