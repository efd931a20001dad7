"""The report: the self-contained page comparison.html, and comparison.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from . import pictures, plots, tables
from .differences import evaluated_values

__all__ = ["html_page", "markdown_page"]

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    # Titles, names and paths are user input
    autoescape=jinja2.select_autoescape(["html.jinja"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.globals.update(
    pictures=pictures, plots=plots, tables=tables, evaluated_values=evaluated_values
)
_TEMPLATES.filters["plain"] = tables.plain


def html_page(
    comparison: dict[str, Any], rows: Sequence[Sequence[pictures.Picture]], note: str
) -> str:
    """Renders the page, which needs no other file and no network.

    Args:
        comparison: the content of comparison.json.
        rows: the pictures of each image.
        note: why pictures are missing; may be empty.
    """
    template = _TEMPLATES.get_template("page.html.jinja")
    return template.render(comparison=comparison, rows=rows, note=note)


def markdown_page(comparison: dict[str, Any]) -> str:
    """Renders the report without plots and pictures in Markdown.

    Args:
        comparison: the content of comparison.json.
    """
    return _TEMPLATES.get_template("page.md.jinja").render(comparison=comparison)
