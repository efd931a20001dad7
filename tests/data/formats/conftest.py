"""Fixtures of the tests of annotation formats."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(autouse=True)
def _forgets_datasets() -> Iterator[None]:
    """Whatever a test registers is forgotten at its end."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
