"""Pieces of a page that needs nothing but itself: no network, no scripts, all text escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

#: Forbids the browser to load anything that is not in the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --paper: #f5f6f8; --card: #ffffff; --ink: #1d2126;
  --faint: #5c6670; --line: #dfe3e8; --accent: #0072b2; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #121519; --card: #1b1f24; --ink: #e8eaed; --faint: #a3acb6; --line: #363d45;
    --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .3em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .5em; }
h3 { font-size: 1.02rem; margin: 1.4em 0 .5em; }
p { margin: .5em 0; max-width: 46em; }
ul { margin: .5em 0; padding-left: 1.2em; max-width: 46em; }
li { margin: .25em 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 22px 26px; margin: 20px 0; }
.faint, figcaption, caption { color: var(--faint); font-size: .88rem; }
figure { margin: 1em 0 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .4em; }
.key { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0 4px; }
.key div { flex: 1 1 112px; border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 12px; }
.key b { display: block; font-size: 1.3rem; line-height: 1.3; white-space: nowrap; }
.key span { color: var(--faint); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; min-width: min(100%, 34em); font-size: .92rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5em; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
th { font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td:first-child { white-space: normal; }
td small { display: block; color: var(--faint); }
table.facts { margin-top: 1em; }
table.facts td, table.facts th { text-align: left; white-space: normal;
  overflow-wrap: anywhere; }
table.facts th { width: 13em; vertical-align: top; font-weight: 400; color: var(--faint); }
.cards { margin-right: -12px; }
.cards img { display: inline-block; vertical-align: top; margin: 0 12px 12px 0; height: auto;
  max-width: calc(100% - 12px); border-radius: 6px; border: 1px solid var(--line); }
details { margin: .6em 0; }
summary { cursor: pointer; color: var(--accent); }
dt { font-weight: 600; margin-top: .6em; }
dd { margin: 0; max-width: 46em; }
@media (max-width: 600px) { section { padding: 16px 14px; } main { padding: 18px 8px 40px; } }
@media print {
  body { background: #fff; font-size: 11pt; }
  main { max-width: none; padding: 0; }
  section { border: 0; padding: 0 0 12pt; margin: 0; break-inside: auto; }
  h2, h3 { break-after: avoid; }
  figure, .cards img, .key, tr { break-inside: avoid; }
  .wide { overflow: visible; }
  table { font-size: 9pt; }
}
"""


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page. `title` is text, `sections` are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A block with a heading (text) around HTML; empty parts are left out."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """Text as a paragraph."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def sentences(texts: Sequence[str]) -> str:
    """Sentences as one paragraph; nothing for none."""
    return paragraph(" ".join(texts)) if texts else ""


def bullets(texts: Sequence[str]) -> str:
    """Texts as a list; nothing for none."""
    if not texts:
        return ""
    return "<ul>\n" + "\n".join(f"<li>{escape(text)}</li>" for text in texts) + "\n</ul>"


def heading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def key_figures(figures: Sequence[tuple[str, str]]) -> str:
    """Large numbers, each with what it is: (number, words)."""
    cells = (f"<div><b>{escape(number)}</b><span>{escape(words)}</span></div>"
             for number, words in figures)  # fmt: skip
    return f'<div class="key">{"".join(cells)}</div>'


def data_table(
    header: Sequence[str], rows: Sequence[Sequence[str | tuple[str, str]]], caption: str = ""
) -> str:
    """A table of texts. A cell that is a pair has a second, fainter line."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table>{said}\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def facts(values: Mapping[str, str]) -> str:
    """Names and values, one a line."""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="facts"><tbody>\n{rows}\n</tbody></table>'


def definitions(values: Mapping[str, str]) -> str:
    """Words and what they mean."""
    entries = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in values.items()
    )
    return f"<dl>\n{entries}\n</dl>"


def folded(summary: str, inner: str) -> str:
    """HTML that is shown on a click."""
    return f"<details><summary>{escape(summary)}</summary>\n{inner}\n</details>"


def figure(light: bytes, dark: bytes, size: tuple[int, int], words: str, caption: str = "") -> str:
    """A PNG in both schemes.

    Args:
        light, dark: PNG files.
        size: (width, height) at which it is shown, in CSS pixels, so that the page does not jump.
        words: what it shows, for those who cannot see it.
        caption: text below it.
    """
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        "<figure><picture>"
        '<source media="screen and (prefers-color-scheme: dark)" '
        f'srcset="{data_uri(dark, "image/png")}">'
        f'<img src="{data_uri(light, "image/png")}" width="{size[0]}" height="{size[1]}" '
        f'style="max-width:{size[0]}px" alt="{escape(words)}"></picture>{below}</figure>'
    )


def cards(pictures: Sequence[tuple[bytes, tuple[int, int], str]]) -> str:
    """Photographic pictures side by side: (JPEG file, CSS size, what it shows)."""
    images = "".join(  # without spaces, which would be shown
        f'<img src="{data_uri(content, "image/jpeg")}" style="width:{width}px" '
        f'width="{width}" height="{height}" alt="{escape(words)}">'
        for content, (width, height), words in pictures
    )
    return f'<div class="cards">{images}</div>'


def data_uri(content: bytes, media_type: str) -> str:
    """A file's content as an address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _cell(cell: str | tuple[str, str]) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    main, below = cell
    return f"<td>{escape(main)}<small>{escape(below)}</small></td>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
