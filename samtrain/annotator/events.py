"""Tells open pages what changes: server-sent events, one stream per page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

WAITING = 200  # events that a slow page may be behind; then it misses some, and asks for the status anyway
BEAT = 15.0  # seconds between comments that keep a proxy from closing the stream


class Events:
    """Sends events from any thread to all open pages."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pages: set[asyncio.Queue[bytes | None]] = set()

    def start(self) -> None:
        """Remembers the running event loop, which the pages' streams belong to."""
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Ends all streams; called in the event loop."""
        self._loop = None
        for page in self._pages:
            page.put_nowait(None)

    def stop_soon(self) -> None:
        """Ends all streams, from any thread; a server waits for its streams when it ends."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self.stop)

    def __len__(self) -> int:
        return len(self._pages)

    def send(self, kind: str, content: dict[str, Any]) -> None:
        """Sends an event to all pages, from any thread."""
        loop, message = self._loop, as_event(kind, content)
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._hand_out, message)

    def _hand_out(self, message: bytes) -> None:
        for page in self._pages:
            if page.qsize() < WAITING:
                page.put_nowait(message)

    async def stream(self, first: list[bytes]) -> AsyncIterator[bytes]:
        """Yields the events of one page, the given ones first, until the server stops or the page is closed."""
        page: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._pages.add(page)
        try:
            for message in first:
                yield message
            while self._loop is not None:
                try:
                    found = await asyncio.wait_for(page.get(), BEAT)
                except asyncio.TimeoutError:
                    found = b": still here\n\n"
                if found is None:
                    return
                yield found
        finally:
            self._pages.discard(page)


def as_event(kind: str, content: dict[str, Any]) -> bytes:
    """Returns an event as it travels."""
    return f"event: {kind}\ndata: {json.dumps(content, allow_nan=False)}\n\n".encode()
