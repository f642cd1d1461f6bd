"""The server of the pages as a child of the engine's process: it starts again if it dies, and ends with the engine."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from samtrain.files import write_text
from samtrain.terminal import console

log = logging.getLogger(__name__)

PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a server that died starts again; each pause is twice as long
HEALTHY = 60.0  # seconds after which a server counts as one that works


class ServerProcess:
    """Runs `python -m samtrain.annotator.serve --config FILE` in a `with` block.

    The server ends when its standard input closes, which happens even if this process is killed. Links with the tokens of
    people are printed and never logged.

    url: the address of the page, as soon as the server has said it
    """

    def __init__(self, config: Path, command: Sequence[str] = ()) -> None:
        self.config, self.url = config, ""
        self.command = list(command) or [sys.executable, "-m", "samtrain.annotator.serve", "--config", str(config)]
        self.process: subprocess.Popen[bytes] | None = None
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="server of the pages", daemon=True)

    def __enter__(self) -> ServerProcess:
        self._start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stop.set()
        self._end()
        self._thread.join()

    def _start(self) -> None:
        with self._lock:
            if not self._stop.is_set():
                self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self._began = time.monotonic()
                threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _watch(self) -> None:
        """Starts the server again whenever it ends by itself."""
        pause = PAUSE
        while not self._stop.is_set():
            assert self.process is not None
            status = self.process.wait()
            if self._stop.is_set():
                return
            pause = PAUSE if time.monotonic() - self._began > HEALTHY else min(2 * pause, LONGEST_PAUSE)
            log.warning(
                "The server of the pages has ended with exit status %d, so people cannot work. It starts again in %.0f s; what "
                "they had accepted is stored.", status, pause,
            )  # fmt: skip
            if not self._stop.wait(pause):
                self._start()

    def _read(self, output: IO[bytes]) -> None:
        """Reads what the server prints; the first line is JSON with its address and the links of people."""
        for line in output:
            try:
                said = json.loads(line)
                url, links = said["url"], said["links"]
            except (ValueError, KeyError, TypeError):
                continue
            if url != self.url:
                self.url = url
                log.info("The page is at %s.", url)
                for name, link in links.items():
                    console().print(f"  {name}: {link}", soft_wrap=True, markup=False)
                self._keep_port(urlsplit(url).port)

    def _keep_port(self, port: int | None) -> None:
        """Gives a server that starts again the port that open pages know, even if it was any free one."""
        values = json.loads(self.config.read_text(encoding="utf-8"))
        if port is not None and values["annotate"]["port"] == 0:
            values["annotate"]["port"] = port
            write_text(self.config, json.dumps(values, indent=1) + "\n")

    def _end(self) -> None:
        """Closes the server's standard input and waits; a server that does not end is killed."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
