"""Shares one console among progress bars and log, so that they do not overwrite each other in a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeVar

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
log = logging.getLogger(__name__)

LINE_EVERY = 30.0  # seconds between lines of progress in the log


@lru_cache
def console() -> Console:
    """Returns the shared console, which writes to the current `sys.stdout`."""
    return Console(highlight=False)


def log_through_console() -> None:
    """Prints log lines through the shared console if the output is a terminal, so that progress bars stay below them."""
    root, plain = logging.getLogger(), NullHighlighter()
    if not console().is_terminal:
        return
    for handler in [each for each in root.handlers if type(each) is logging.StreamHandler and each.stream is sys.stdout]:
        ours = RichHandler(console=console(), show_path=False, show_level=False, log_time_format="%H:%M:%S", highlighter=plain)
        ours.setLevel(handler.level)
        ours.setFormatter(_LevelFormatter("%(message)s"))
        root.removeHandler(handler)
        root.addHandler(ours)


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as "1 image" and "2 images"."""
    return f"{number:d} {noun}" if number == 1 else f"{number:d} {noun}s"


class _LevelFormatter(logging.Formatter):
    """Puts the level before messages of warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line for one record."""
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def follow(items: Iterable[T], words: str, total: int) -> Iterator[T]:
    """Yields the items with a progress bar that disappears at the end; without a terminal there is a line now and then."""
    if not console().is_terminal:
        shown_at = time.monotonic()
        for number, item in enumerate(items):
            if time.monotonic() - shown_at > LINE_EVERY:
                shown_at = time.monotonic()
                log.info("%s: %d of %d", words, number, total)
            yield item
        return
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        yield from progress.track(items, total=total, description=words)
