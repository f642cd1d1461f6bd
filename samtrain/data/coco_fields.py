"""Reads the fields that COCO and LVIS have and SA-1B does not: crowds, categories, and ids of any type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SHOWN = 3  # ids of a kind that a message shows
TRUE, FALSE = ("1", "1.0", "true"), ("0", "0.0", "false", "", "none")


def is_crowd(annotation: dict[str, Any]) -> bool:
    """Returns whether `iscrowd` marks a region of many objects; some tools write it as text. Raises ValueError otherwise."""
    text = str(annotation.get("iscrowd", 0)).strip().lower()
    if text not in TRUE + FALSE:
        raise ValueError(f"iscrowd is {annotation['iscrowd']!r}: give 0 or 1")
    return text in TRUE


def id_text(value: Any) -> str:
    """Returns an id as text, so that 7, 7.0 and "7" are the same id."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def some_ids(values: Iterable[Any]) -> str:
    """Returns the first few of the ids, for a message about ids that do not fit."""
    listed = sorted({id_text(value) for value in values})
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "") if listed else "none"
