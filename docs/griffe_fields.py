"""Shows the field lists of our docstrings as lists.

Docstrings here explain several fields as `name:  meaning` or `(N, K) name:  meaning`, one per line with two spaces after
the colon. Markdown would join such lines into one paragraph.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

FIELD = re.compile(r"^(?P<name>[a-zA-Z_][\w ,]*?):\s{1,}(?P<text>\S.*)$")


class FieldLists(griffe.Extension):
    """Turns runs of `name:  meaning` lines into Markdown lists."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(text: str) -> str:
    """Returns a docstring in which each paragraph that starts with a field is a list."""
    return "\n\n".join(_paragraph(part) for part in text.split("\n\n"))


def _paragraph(part: str) -> str:
    lines = part.splitlines()
    if not lines or not re.match(r"^[a-zA-Z_][\w ,]*:\s{2,}\S", lines[0]):
        return part
    out = []
    for line in lines:
        found = FIELD.match(line) if not line.startswith(" ") else None
        if found:
            names = re.sub(r"\b(?!or\b|and\b)(\w+)", r"`\1`", found["name"])
            out.append(f"- {names}: {found['text'].strip()}")
        else:
            out.append(f"    {line.strip()}")
    return "\n".join(out)
