"""Describes what one format has written, and which program is asked about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from samtrain.export.probe import Probe, Reading


@dataclass(frozen=True)
class Product:
    """Holds what one format wrote, in one precision.

    name:     what it is called in logs and in export.json
    files:    the files, or a single folder
    ask:      asks the program that the files are for
    program:  the name of that program
    rounds:   the numbers are not those of float32, so that masks are compared instead of logits
    missing:  the package that is not installed, so that the files were only read back by samtrain itself
    """

    name: str
    files: list[Path]
    ask: Callable[[Probe], Reading]
    program: str
    rounds: bool = False
    missing: str | None = None
