"""The writers of whole files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from onenet.utils.files import whole_file, write_json, write_whole


def test_write_whole_writes_and_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first\r\n", b""):
        write_whole(str(path), content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_whole(str(path), b"old")

    def interrupt(*_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_whole(str(path), b"new")
    assert path.read_bytes() == b"old"
    write_whole(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]  # what was left is gone


def test_write_json_makes_folders_and_has_null_for_nan(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    nan = float("nan")
    write_json(str(path), {"name": "é", "list": [nan, 1.5], "pair": (nan, 2), "in": {"x": nan}})
    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content == {"name": "é", "list": [None, 1.5], "pair": [None, 2], "in": {"x": None}}


def test_write_json_into_the_working_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json("file.json", {"a": 1})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}


def test_only_what_happens_in_it_is_the_files(tmp_path: Path) -> None:
    """Not the error that the caller is handling; but one that a library hides."""
    path = str(tmp_path / "file")
    try:
        raise FileNotFoundError("of the caller")
    except OSError:
        with pytest.raises(KeyError), whole_file(path):
            raise KeyError("a bug")  # noqa: B904
    with pytest.raises(OSError, match="full") as caught, whole_file(path):
        try:
            raise OSError(28, "full")
        except OSError:
            raise RuntimeError("of torch")  # noqa: B904
    assert caught.value.filename == path
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("value", "error"), [(float("inf"), ValueError), (object(), TypeError)], ids=["inf", "object"]
)
def test_what_json_cannot_hold_changes_nothing(
    value: object, error: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    write_json(str(path), {"a": 1})
    with pytest.raises(error):
        write_json(str(path), {"a": [value]})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["file.json"]
