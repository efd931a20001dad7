"""The self-contained page comparison.html."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from . import pictures, tables

__all__ = ["Gallery", "html_page"]

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # titles, names and paths are user input
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


@dataclass(frozen=True)
class Gallery:
    """Images with the boxes of each detector."""

    rows: list[list[pictures.Picture]]  # one row per image
    min_score: float
    note: str = ""  # why images are missing


def html_page(comparison: dict[str, Any], plots: dict[str, str], gallery: Gallery) -> str:
    """Renders the page, which needs no other file and no network.

    Args:
        comparison: the content of comparison.json.
        plots: ``<svg>`` elements "ap", "duplicates", "precision", "losses" and "speed" (may be
            empty).
        gallery: the images.
    """
    return _TEMPLATES.get_template("page.html.jinja").render(
        comparison=comparison, plots=plots, gallery=gallery, tables=tables, pictures=pictures
    )
