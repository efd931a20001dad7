"""Fixtures of the fault injection."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # where forked runs find it, too

import short_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> short_runs.Runs:
    """Starts runs on one small set of images."""
    return short_runs.Runs(short_runs.make_set(tmp_path_factory.mktemp("set") / "set"))


@pytest.fixture(scope="session")
def undisturbed(runs, tmp_path_factory) -> Path:
    """The OUTPUT_DIR of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert runs.finish(output) == 0, short_runs.terminal(output)[-3000:]
    return output
