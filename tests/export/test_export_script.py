"""tools/export.py: the parity check, and errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

CONFIG = "configs/digits/onenet_point_R18.yaml"


@pytest.fixture
def checkpoint(build, tmp_path: Path) -> Path:
    _, model = build("digits/onenet_point_R18")
    path = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        pixels = torch.randint(256, (60 + 20 * i, 80, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def run(repo_root: Path, folder: Path, *words: object) -> subprocess.CompletedProcess:
    """Runs the program in a folder."""
    program, config = repo_root / "tools" / "export.py", repo_root / CONFIG
    command = [sys.executable, program, "--config-file", config, *words]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


@pytest.mark.slow
def test_writes_what_passes_the_parity_check(repo_root, checkpoint, images, tmp_path) -> None:
    output = tmp_path / "model.onnx"
    done = run(repo_root, tmp_path, "--weights", checkpoint, "--output", output, "--images", images)
    assert done.returncode == 0, done.stderr
    assert "Parity check passed" in done.stdout and done.stdout.count("e-") >= 12
    assert output.stat().st_size > 2**20


@pytest.mark.slow
def test_beyond_the_tolerance_it_leaves_the_old_file_alone(
    repo_root, checkpoint, images, tmp_path
) -> None:
    output = tmp_path / "model.onnx"
    output.write_text("an older one")
    words = ("--weights", checkpoint, "--output", output, "--images", images)
    done = run(repo_root, tmp_path, *words, "--score-tolerance", "0")
    assert done.returncode == 1 and "was not written" in done.stderr
    assert output.read_text() == "an older one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "model.onnx", "weights.pth"]


@pytest.mark.slow
def test_a_test_size_that_is_too_small_for_pt2(repo_root, checkpoint, images, tmp_path) -> None:
    words = ("--weights", checkpoint, "--output", tmp_path / "model.pt2", "--images", images)
    small = ("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64")
    done = run(repo_root, tmp_path, *words, *small)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "does not take images padded to 64 x 32 pixels" in done.stderr
    assert "raise INPUT.MIN_SIZE_TEST, or export as .onnx." in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "weights.pth"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, message",
    [
        (("--output", "model.engine"), "has to end in"),
        (("--output", "nowhere/model.onnx"), "there is no folder 'nowhere'"),
        (("--output", "model.onnx", "--images", "nowhere"), "there is no folder 'nowhere'"),
    ],
)
def test_refuses_in_one_sentence(repo_root, checkpoint, tmp_path, words, message) -> None:
    done = run(repo_root, tmp_path, "--weights", checkpoint, *words)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]
