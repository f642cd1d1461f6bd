"""The parts of every page: the document with its style, sections, rows of charts, and lists of facts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from samtrain.files import write_text

STYLE = Path(__file__).with_name("style.css")


def document(title: str, header: str, sections: Sequence[str]) -> str:
    """Returns a self-contained page; header and sections are HTML, and empty sections are left out."""
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n<body><main>\n{header}\n"
        + "\n".join(each for each in sections if each)
        + "\n</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """Returns a section with its heading, or "" if the body is empty."""
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f"<section>{heading}{body}</section>" if body else ""


def charts(figures: Sequence[str]) -> str:
    """Returns figures side by side, as many as fit into the width."""
    drawn = "".join(figures)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns a list of (name, value) pairs; the values are HTML."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in pairs) + "</dl>"


def write_page(path: Path, page: str) -> Path:
    """Writes the page, complete or not at all, and returns its path."""
    write_text(path, page)
    return path
