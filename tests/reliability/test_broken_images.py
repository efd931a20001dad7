"""An image among others that cannot be read: named, or skipped and counted, by the config."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import short_runs
from short_runs import differences, error_of, tensors, terminal

NAME = "3.png"
SKIP = ("INPUT.ON_BAD_IMAGE", "skip")


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def bit_flipped(content: bytes) -> bytes:
    """In the width. (Most flips among the pixels only change these: no decoder can tell.)"""
    return content[:19] + bytes([content[19] ^ 8]) + content[20:]


def empty(_: bytes) -> bytes:
    return b""


@pytest.fixture(scope="module", params=[truncated, bit_flipped, empty], ids=lambda f: f.__name__)
def broken(request, tmp_path_factory) -> tuple[short_runs.Runs, Path]:
    """Starts runs on a set with a broken image; and the image."""
    folder = tmp_path_factory.mktemp("broken") / "set"
    runs = short_runs.Runs(short_runs.make_set(folder))
    image = folder / "images" / NAME
    image.write_bytes(request.param(image.read_bytes()))
    return runs, image


@pytest.mark.slow
def test_fail_names_the_image_in_training(broken, tmp_path: Path) -> None:
    runs, image = broken
    assert runs.finish(tmp_path) == 1
    assert f"The image {image} cannot be read (" in error_of(tmp_path)
    assert "Traceback" not in terminal(tmp_path)


@pytest.mark.slow
def test_fail_names_the_image_in_evaluation(broken, undisturbed: Path, tmp_path: Path) -> None:
    runs, image = broken
    words = ("MODEL.WEIGHTS", str(undisturbed / "model_final.pth"))
    assert runs.finish(tmp_path, *words, eval_only=True) == 1
    assert f"The image {image} cannot be read (" in error_of(tmp_path)


@pytest.mark.slow
def test_skip_counts_it_at_the_end(broken, tmp_path: Path) -> None:
    """And the run can be resumed all the same, whoever loads the images."""
    runs, image = broken
    assert runs.finish(tmp_path / "whole", *SKIP) == 0
    printed = terminal(tmp_path / "whole")
    assert printed.count(f"Skipped: The image {image} cannot be read") == 1
    found = re.search(r"(\d+) images could not be used, and others took their place (\d+)", printed)
    assert found[1] == "1" and int(found[2]) >= 1
    assert printed.count("1 of 10 images could not be read, and count as images in which") == 1

    cut = tmp_path / "cut"
    cut.mkdir()
    name = "model_0000003.pth"
    (cut / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (cut / "last_checkpoint").write_text(name)
    assert runs.finish(cut, *SKIP, "DATALOADER.NUM_WORKERS", "2", resume=True) == 0
    assert not differences(tensors(cut), tensors(tmp_path / "whole"))


@pytest.mark.slow
def test_nothing_changes_where_no_image_is_broken(runs, undisturbed, tmp_path: Path) -> None:
    assert runs.finish(tmp_path, *SKIP) == 0
    assert not differences(tensors(tmp_path), tensors(undisturbed))
    assert "could not be" not in terminal(tmp_path)
