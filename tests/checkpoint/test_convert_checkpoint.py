"""The program tools/convert_checkpoint.py: the files that it refuses, and those that it writes."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from pathlib import Path
from typing import IO

import pytest
import torch
from detectron2.modeling import build_model
from random_models import CONFIGS, ROOT, SMALLEST, State, config, has_all

from onenet.checkpoint import load_weights
from onenet.utils.errors import ConfigError


@pytest.fixture(scope="module")
def tool():
    """``convert`` and ``main`` of tools/convert_checkpoint.py."""
    path = ROOT / "tools" / "convert_checkpoint.py"
    spec = importlib.util.spec_from_file_location("convert_checkpoint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p, f: p.write_bytes(Path(f).read_bytes()[:100_000]), "no checkpoint that torch"),
        (lambda p, f: p.write_bytes(b""), "no checkpoint that torch"),
        (lambda p, f: torch.save([1, 2], p), "holds no weights"),
        (lambda p, f: torch.save({"state_dict": {"a": torch.ones(1)}}, p), "holds no weights"),
        (lambda p, f: torch.save({"a.weight": torch.ones(1)}, p), "first: a.weight"),
        (lambda p, f: torch.save({}, p), "holds no weights"),
        (lambda p, f: None, "There is no file"),
    ],
)
def test_foreign_files_are_refused_with_a_sentence(
    tool, small_file: str, tmp_path: Path, write, message: str
) -> None:
    path = tmp_path / "foreign.pth"
    write(path, small_file)
    with pytest.raises(ConfigError, match=message) as caught:
        tool.convert(str(path), str(CONFIGS / f"{SMALLEST}.yaml"), [])
    assert "foreign.pth" in str(caught.value) and "\n" not in str(caught.value)


def run_tool(tool, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *words])
    tool.main()


def test_program(tool, monkeypatch, capsys, small: State, small_file: str, tmp_path: Path) -> None:
    output, report = tmp_path / "converted.pth", tmp_path / "report.txt"
    run_tool(
        tool, monkeypatch, small_file, "--config-file", str(CONFIGS / f"{SMALLEST}.yaml"),
        "--output", str(output), "--report", str(report), "MODEL.ONENET.NUM_CLASSES", "80",
    )  # fmt: skip
    assert f"{len(small)} tensors: " in capsys.readouterr().out
    lines = report.read_text().splitlines()
    assert len(lines) == 1 + len(small) + 2  # heading, tensors, blank line and summary
    (offset,) = [line.split() for line in lines if "deconv2.dcn_offset.weight" in line]
    assert offset == [
        "head.deconv.deconv2.dcn_offset.weight", "27x256x3x3",
        "backbone.neck.stages.1.conv.offset.weight", "27x256x3x3", "renamed",
    ]  # fmt: skip
    model = build_model(config(SMALLEST))
    load_weights(model, str(output))
    assert has_all(model, small)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "converted.pth", "original.pth", "report.txt",
    ]  # fmt: skip


def test_program_leaves_nothing_of_a_failure(
    tool, monkeypatch, small_file: str, tmp_path: Path
) -> None:
    output = tmp_path / "converted.pth"
    other = str(CONFIGS / "coco" / "onenet_point_R18_nodcn.yaml")
    words = (small_file, "--config-file", other, "--output")
    with pytest.raises(SystemExit, match="error: The weights .*original.pth are not of the model"):
        run_tool(tool, monkeypatch, *words, str(output))
    with pytest.raises(SystemExit, match="is a folder; give the path of a file"):
        run_tool(tool, monkeypatch, *words, str(tmp_path))
    with pytest.raises(SystemExit, match="There is no folder .*nowhere"):
        run_tool(tool, monkeypatch, *words, str(tmp_path / "nowhere" / "x.pth"))

    def full_disk(content: object, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full_disk)
    fitting = (small_file, "--config-file", str(CONFIGS / f"{SMALLEST}.yaml"), "--output")
    with pytest.raises(SystemExit, match="converted.pth cannot be written .No space left"):
        run_tool(tool, monkeypatch, *fitting, str(output), "MODEL.ONENET.NUM_CLASSES", "80")
    assert [p.name for p in tmp_path.iterdir()] == ["original.pth"]
