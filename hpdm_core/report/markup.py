"""The page around a report: semantic HTML, one stylesheet inside, no script, nothing fetched.

Text is escaped where it enters; functions that take `html` expect markup from this package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hpdm_core.version import __version__

STYLESHEET = Path(__file__).with_name("page.css")


@dataclass(frozen=True)
class Section:
    """One part of a page: `anchor` is its id, `html` its body."""

    anchor: str
    title: str
    html: str
    note: str = ""


def page(title: str, lead: str, sections: Sequence[Section], *, kicker: str = "hpdm report") -> str:
    """A whole HTML document."""
    links = "".join(f'<li><a href="#{escape(s.anchor)}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(_section(s) for s in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLESHEET.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>{paragraph(lead, "lead")}</header>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n{body}</main>\n'
        f"<footer><p>Made by hpdm {escape(__version__)}. This file needs no network.</p></footer>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    note = paragraph(section.note, "note")
    return f'<section id="{escape(section.anchor)}"><h2>{escape(section.title)}</h2>{note}\n{section.html}</section>\n'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; nothing where there is none."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>" if text else ""


def facts(pairs: Mapping[str, str]) -> str:
    """Short facts side by side: a name and a value each."""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs.items())
    return f'<dl class="facts">{items}</dl>' if pairs else ""


def figure(html: str, caption: str, kind: str = "") -> str:
    """A figure with a caption of plain text."""
    attribute = f' class="{kind}"' if kind else ""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure{attribute}>{html}{text}</figure>"


def grid(items: Sequence[str], kind: str) -> str:
    """Figures in as many columns as fit."""
    return f'<div class="grid {kind}">{"".join(items)}</div>'


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways by itself where it is too wide."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headers)
    lines = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def folded(summary: str, text: str) -> str:
    """Preformatted text behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary><pre><code>{escape(text)}</code></pre></details>"


def command(text: str) -> str:
    """A command line to copy."""
    return f'<pre class="command"><code>{escape(text)}</code></pre>'
