"""Damaged folders of every layout end in one sentence, and in no other error."""

from __future__ import annotations

import contextlib
import random

import pytest
from written_sets import SPLIT, WRITERS

from onenet.data import register_folder
from onenet.utils.errors import DataError

TOKENS = [b"nan", b"-1", b"1e999", b"null", b"[]", b"{}", b"true", b"\xff", b"\0", b"9" * 400,
          b"<", b":", b"\n", b"!!python/object:x", b"*a", b"../", b"/"]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
def test_damaged_files(tmp_path, write):
    damage = random.Random(write.__name__)
    write(tmp_path, SPLIT)
    texts = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png")
    for _ in range(15):
        path = damage.choice(texts)
        whole = path.read_bytes()
        start = damage.randrange(len(whole) + 1)
        end = start + damage.choice([0, 1, 3, 10, 60])
        path.write_bytes(whole[:start] + damage.choice(TOKENS) + whole[end:])
        with contextlib.suppress(DataError):
            register_folder(str(tmp_path))
        path.write_bytes(whole)
    assert len(register_folder(str(tmp_path))) == 3
