"""The page comparison.html: one file, for a phone, a screen or paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from . import pictures, tables

__all__ = ["Gallery", "html_page"]

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # titles, names and paths hold whatever users wrote
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


@dataclass(frozen=True)
class Gallery:
    """Pictures of some images under each detector."""

    rows: list[list[pictures.Picture]]  # one row an image
    min_score: float
    note: str = ""  # why there are none, or fewer


def html_page(comparison: dict[str, Any], plots: dict[str, str], gallery: Gallery) -> str:
    """The whole page; needs no other file and no network.

    Args:
        comparison: the content of comparison.json.
        plots: the ``<svg>`` elements "ap", "duplicates", "precision", "losses" and, possibly empty,
            "speed".
        gallery: the pictures.
    """
    return _TEMPLATES.get_template("page.html.jinja").render(
        comparison=comparison, plots=plots, gallery=gallery, tables=tables, pictures=pictures
    )
