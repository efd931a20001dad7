"""tools/export.py: the parity check, and errors."""

from __future__ import annotations

import json
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


@pytest.fixture
def test_set(images) -> tuple[str, ...]:
    """Overrides that name the images as test set, with a box in each."""
    records = [
        {"id": i, "file_name": f"{i}.png", "height": 60 + 20 * i, "width": 80} for i in range(3)
    ]
    boxes = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [9, 9, 20, 20], "area": 400}
        for i in range(3)
    ]
    names = [{"id": i + 1, "name": str(i)} for i in range(10)]
    content = {
        "images": records,
        "annotations": [{**box, "iscrowd": 0} for box in boxes],
        "categories": names,
    }
    path = images / "test.json"
    path.write_text(json.dumps(content))
    return ("DATASETS.TEST_JSON", str(path), "DATASETS.TEST_IMAGE_ROOT", str(images))


@pytest.mark.slow
def test_int8_is_kept_by_its_ap(repo_root, checkpoint, images, test_set, tmp_path) -> None:
    output = tmp_path / "model.onnx"
    words = ("--weights", checkpoint, "--output", output, "--int8", "--calibration", images)
    done = run(repo_root, tmp_path, *words, "--ap-tolerance", "-1", *test_set)
    assert done.returncode == 1 and "was not written: AP on" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "weights.pth"]
    done = run(repo_root, tmp_path, *words, *test_set)
    assert done.returncode == 0, done.stderr
    assert "int8" in done.stdout.splitlines()[-1] and "AP on" in done.stdout


@pytest.mark.slow
def test_float16_that_differs_is_kept_by_its_ap(
    repo_root, checkpoint, images, test_set, tmp_path
) -> None:
    output = tmp_path / "model.onnx"
    words = ("--weights", checkpoint, "--output", output, "--half", "--box-tolerance", "0")
    done = run(repo_root, tmp_path, *words, *test_set)
    assert done.returncode == 1 and "boxes differ by" in done.stderr
    assert "--evaluate lets its AP decide" in done.stderr and not output.exists()
    done = run(repo_root, tmp_path, *words, "--evaluate", *test_set)
    assert done.returncode == 0, done.stderr
    assert "float16" in done.stdout.splitlines()[-1] and "AP on" in done.stdout


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
        (("--output", "model.onnx", "--int8"), "--int8 and --calibration FOLDER need each other"),
        (("--output", "model.pt2", "--int8", "--calibration", "."), "--int8 writes .onnx only"),
    ],
)
def test_refuses_in_one_sentence(repo_root, checkpoint, tmp_path, words, message) -> None:
    done = run(repo_root, tmp_path, "--weights", checkpoint, *words)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]
