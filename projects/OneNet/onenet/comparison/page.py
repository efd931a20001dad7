"""The page comparison.html: one file, for a phone, a screen or paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

from .pictures import COLORS, DUPLICATE, FOUND, OTHER, TRUTH, Picture
from .tables import (
    DASH,
    Table,
    crowding_table,
    definitions,
    machine_sentence,
    progress_table,
    settings_table,
    speed_note,
    speed_table,
    summary_table,
)

__all__ = ["Gallery", "html_page"]


@dataclass(frozen=True)
class Gallery:
    """Pictures of some images under each detector."""

    rows: list[list[Picture]]  # one row an image
    min_score: float
    note: str = ""  # why there are none, or fewer


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<dl>$facts</dl>
</header>
<main>
$not_equal
<section>
<h2>Results</h2>
$summary
<p class="note">$definitions</p>
</section>
<section>
<h2>Plots</h2>
<div class="plots">
$plots
</div>
</section>
<section>
<h2>By crowding</h2>
<p>By an object's largest IoU with another object of its class in the same image.</p>
$crowding
</section>
<section>
<h2>During training</h2>
<p>As configured, NMS included where the detector has it.</p>
$progress
</section>
<section>
<h2>Speed</h2>
$speed
<p class="note">$speed_note</p>
</section>
<section>
<h2>Pictures</h2>
$pictures
</section>
<section>
<h2>Runs</h2>
$settings
</section>
</main>
</body>
</html>
""")

_STYLE = """\
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 0 1rem 3rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 1.2rem 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: 0;
  font-size: .85rem; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
code { font-size: .95em; }
.note { font-size: .85rem; color: #444; max-width: 60rem; }
.not-equal { border-left: .3rem solid #d55e00; background: #fff4ec; padding: .5rem .8rem;
  margin: 1rem 0; font-size: .9rem; }
.not-equal ul { margin: .2rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid #ddd; border-radius: .3rem; }
table { border-collapse: collapse; width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: right;
  vertical-align: top; }
td span { white-space: nowrap; display: block; }
.range { color: #666; font-size: .85em; }
thead th { background: #f3f4f6; vertical-align: bottom; }
th:first-child, .text { text-align: left; }
tbody th { font-weight: 600; background: #fff; position: sticky; left: 0;
  min-width: 7rem; max-width: 10rem; overflow-wrap: break-word; }
tbody .group th { background: #e9edf2; position: static; max-width: none; }
.group span { position: sticky; left: .6rem; }
tbody tr:last-child > * { border-bottom: 0; }
.text { white-space: nowrap; }
.long { overflow-wrap: anywhere; min-width: 12rem; white-space: normal; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.2rem; align-items: start; }
figure { margin: 0; }
.plots figure { max-width: 32rem; }
.plots svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #333; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: .6rem; margin-bottom: 1rem; }
.pictures img { display: block; width: 100%; height: auto; border: 1px solid #ccc; }
.pictures figcaption { font-size: .75rem; line-height: 1.3; margin-top: .2rem; }
.pictures b { display: block; overflow-wrap: anywhere; }
.key { display: inline-block; width: 1.3em; height: .9em; vertical-align: -.05em;
  border-style: solid; margin-right: .3em; print-color-adjust: exact; }
.legend span { margin-right: 1.2rem; white-space: nowrap; }
@media print {
  @page { margin: 1.4cm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; }
  tbody th { position: static; }
  thead { display: table-header-group; }
  h2, h3, figcaption { break-after: avoid; }
  figure, tr, .pictures, .not-equal { break-inside: avoid; }
  .plots { grid-template-columns: 1fr 1fr; }
  .pictures { grid-template-columns: repeat(auto-fill, minmax(3.6cm, 1fr)); }
  .not-equal, thead th, .group th { print-color-adjust: exact; }
}
"""


def html_page(
    comparison: dict[str, Any], plots: Sequence[tuple[str, str]], gallery: Gallery
) -> str:
    """The whole page; needs no other file and no network.

    Args:
        comparison: the content of comparison.json.
        plots: title with explanation, and the ``<svg>`` element, of each plot.
        gallery: the pictures.
    """
    machine = escape(machine_sentence(comparison["machine"]))
    facts = {
        "Date": escape(comparison["date"]),
        "Machine": machine,
        "Command": f"<code>{escape(comparison['command'])}</code>",
        **_data_facts(comparison),
    }
    has_speed = bool(comparison["speed"])
    return _PAGE.substitute(
        title=escape(comparison["title"]),
        style=_STYLE,
        facts="".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items()),
        not_equal=_not_equal(comparison["not_equal"]),
        summary=_table(summary_table(comparison), texts=2),
        definitions=escape(definitions(comparison)),
        plots="\n".join(_plot(caption, svg) for caption, svg in plots),
        crowding=_table(crowding_table(comparison), texts=2),
        progress=_table(progress_table(comparison), texts=1),
        speed=_table(speed_table(comparison), texts=2) if has_speed else f"<p>{DASH}</p>",
        speed_note=escape(speed_note(comparison)),
        pictures=_pictures(gallery),
        settings=_table(settings_table(comparison), texts=4),
    )


def _data_facts(comparison: dict[str, Any]) -> dict[str, str]:
    """The test sets, with their numbers of images and objects."""
    found = dict.fromkeys(
        f"{e.get('dataset') or DASH}, {_count(e, 'num_images')} images,"
        f" {_count(e, 'num_objects')} objects"
        for detector in comparison["detectors"]
        for seed in detector["seeds"]
        for e in seed["evaluations"].values()
    )
    return {"Tested on": escape("; ".join(found))} if found else {}


def _count(evaluation: dict[str, Any], key: str) -> str:
    value = evaluation.get(key)
    return DASH if value is None else str(value)


def _not_equal(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<div class="not-equal"><strong>Not equal:</strong><ul>{items}</ul></div>'


def _table(table: Table, texts: int) -> str:
    """A table in its own scrolling box.

    Args:
        table: its first cell of each row is a heading.
        texts: how many columns, from the left, are text and not numbers.
    """
    head = "".join(
        f'<th scope="col"{_text(i, texts)}>{escape(title)}</th>'
        for i, title in enumerate(table.header)
    )
    body = []
    for row in table.rows:
        first = escape(row[0])
        if len(row) == 1:
            body.append(
                f'<tr class="group"><th scope="colgroup" colspan="{len(table.header)}">'
                f"<span>{first}</span></th></tr>"
            )
            continue
        cells = "".join(
            f"<td{_text(i, texts)}>{_value(cell, i < texts)}</td>"
            for i, cell in enumerate(row[1:], start=1)
        )
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return (
        '<div class="scroll" tabindex="0"><table><thead><tr>'
        f"{head}</tr></thead><tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def _text(column: int, texts: int) -> str:
    if not 0 < column < texts:
        return ""
    return ' class="text long"' if texts > 2 else ' class="text"'


def _value(cell: str, is_text: bool) -> str:
    """A cell; of a number with a range, the range is in small print below it."""
    if is_text:
        return escape(cell)
    mean, bracket, spread = cell.partition(" (")
    below = f'<span class="range">{escape(spread.rstrip(")"))}</span>' if bracket else ""
    return f"<span>{escape(mean)}</span>{below}"


def _plot(caption: str, svg: str) -> str:
    title, _, rest = caption.partition(". ")
    label = f'<svg role="img" aria-label="{escape(title)}"'
    return (
        f"<figure>{svg.replace('<svg', label, 1)}<figcaption><strong>{escape(title)}.</strong>"
        f" {escape(rest)}</figcaption></figure>"
    )


def _pictures(gallery: Gallery) -> str:
    note = f'<p class="note">{escape(gallery.note)}</p>' if gallery.note else ""
    if not gallery.rows:
        return note or f"<p>{DASH}</p>"
    rows = [f"{_legend(gallery.min_score)}{note}"]
    for number, row in enumerate(gallery.rows, start=1):
        figures = "\n".join(_picture(picture, number) for picture in row)
        rows.append(f'<div class="pictures">\n{figures}\n</div>')
    return "\n".join(rows)


def _picture(picture: Picture, number: int) -> str:
    label, words = escape(picture.label), escape(picture.words)
    return (
        f'<figure><img src="{picture.uri}" alt="Image {number}, {label}: {words}">'
        f"<figcaption><b>{label}</b>{words}</figcaption></figure>"
    )


def _legend(min_score: float) -> str:
    words = {
        TRUTH: "blue: object (ground truth)",
        FOUND: "green: finds an object",
        DUPLICATE: "red, thick: duplicate of a found object",
        OTHER: "orange: on no object of its class",
    }
    keys = "".join(
        f'<span><i class="key" style="border-color:rgb{COLORS[kind][0]};'
        f'border-width:{max(2, COLORS[kind][1] - 1)}px"></i>{text}</span> '
        for kind, text in words.items()
    )
    return (
        "<p>The images with most objects of the test set; boxes of the first seed with a score of"
        f' {min_score:g} or more.</p><p class="note legend">{keys}</p>'
    )
