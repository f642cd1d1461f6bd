"""The terminal: one console for everything that is live, so that lines of the log do not run into it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeVar

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


@lru_cache
def console() -> Console:
    """What is written to is `sys.stdout` as it is at the time."""
    return Console(highlight=False)


def log_through_console() -> None:
    """Where the output is a terminal, let the log's lines pass the live display; elsewhere they stay as they are."""
    root, plain = logging.getLogger(), NullHighlighter()
    if not console().is_terminal:
        return
    for handler in [each for each in root.handlers if type(each) is logging.StreamHandler and each.stream is sys.stdout]:
        ours = RichHandler(console=console(), show_path=False, show_level=False, log_time_format="%H:%M:%S", highlighter=plain)
        ours.setLevel(handler.level)
        ours.setFormatter(_Words("%(message)s"))
        root.removeHandler(handler)
        root.addHandler(ours)


class _Words(logging.Formatter):
    """The message, and before it what it is where it is more than information."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def follow(items: Iterable[T], words: str, total: int) -> Iterator[T]:
    """The items one by one, with a bar that goes away at the end; where there is no terminal, only the items."""
    if not console().is_terminal:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        yield from progress.track(items, total=total, description=words)
