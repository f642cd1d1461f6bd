"""Runs a server: in the foreground for `task=annotate`, or as the engine's child process.

    python -m samtrain.annotator.serve --config FILE.json

ends when its standard input is closed, so that it never outlives the process that has started it. Its address is in
FILE.address.json and, with the links of the annotators, in the line of JSON that it prints first.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from samtrain.annotator.app import make_app
from samtrain.annotator.config import AnnotateConfig, ServeConfig, is_loopback, read_serve_config
from samtrain.annotator.service import Service
from samtrain.annotator.store import Store, open_store
from samtrain.data.opening import limit_pixels
from samtrain.files import atomic_path, write_text

log = logging.getLogger(__name__)

IMPATIENT = 1.0  # seconds after which a second Ctrl-C ends the process at once
PATIENCE = 3  # seconds that open connections get when the server ends


class Server:
    """Serves one store from a thread of its own; use it with `with`.

    url: the address of the page, after the start
    """

    def __init__(self, config: ServeConfig) -> None:
        limit_pixels(config.max_image_pixels)
        self.config = config
        self.socket = _listen(config.annotate)
        self.store = open_store(config.store)
        self.url = f"http://{_shown_host(config.annotate.host)}:{self.socket.getsockname()[1]}"
        self.service = Service(config, self.store)
        app = make_app(self.service)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=PATIENCE,
            limit_concurrency=1000, lifespan="on", ws="none", proxy_headers=False,
        )  # fmt: skip
        self.uvicorn = uvicorn.Server(settings)
        self.thread = threading.Thread(target=self._serve, name="server", daemon=True)

    def __enter__(self) -> Server:
        self.thread.start()
        while not self.uvicorn.started and self.thread.is_alive():
            time.sleep(0.01)
        if not self.uvicorn.started:
            self.close()
            raise ValueError(f"the server at {self.url} did not start; the log says why")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server; requests that have begun are answered."""
        self.service.events.stop_soon()
        self.uvicorn.should_exit = True
        if self.thread.is_alive():
            self.thread.join(timeout=2 * PATIENCE)
        self.socket.close()
        self.store.close()

    def _serve(self) -> None:
        self.uvicorn.run(sockets=[self.socket])


def links_of(config: ServeConfig, store: Store, url: str) -> dict[str, str]:
    """Registers the annotators of the settings and returns {name: link}; raises ValueError if anybody could come in.

    Of a token the store keeps only a hash, so the links of annotators who were there before come from the file `config.links`,
    which only its owner can read; without it they get new tokens.
    """
    known, kept = set(store.annotators()), _kept_tokens(config.links)
    tokens = {}
    for name in config.annotate.annotators:
        token = kept.get(name)
        if name not in known or token is None or store.annotator_of(token) != name:
            token = store.add_annotator(name)
        tokens[name] = token
    if tokens and config.links is not None:
        _keep_tokens(Path(config.links), {**kept, **tokens})
    if not store.annotators() and not is_loopback(config.annotate.host):
        raise ValueError(
            f"annotate.host is {config.annotate.host!r}, which lets other machines in, and no annotator has a token: set "
            "annotate.annotators=[NAME, ...], or annotate.host=127.0.0.1"
        )
    return {name: f"{url}/#token={token}" for name, token in tokens.items()}


@contextmanager
def stop_by_signals() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C and SIGTERM set, instead of ending the process; a second one ends it."""
    stopped = threading.Event()
    first: list[float] = []

    def stop(number: int, frame: Any) -> None:
        if first and time.monotonic() - first[0] > IMPATIENT:  # not the same signal, sent to the group of processes as well
            raise KeyboardInterrupt
        first.append(time.monotonic())
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(settings: AnnotateConfig) -> socket.socket:
    """Returns the socket to serve; raises ValueError that names the keys if the address cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        raise ValueError(
            f"annotate.host={settings.host} annotate.port={settings.port} cannot be listened to ({error.strerror or error}): "
            "another server may run there, so give another annotate.port, or 0 for any free one"
        ) from error
    listening.set_inheritable(False)
    return listening


def _shown_host(host: str) -> str:
    """Returns the host as the printed address has it."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _kept_tokens(path: str | None) -> dict[str, str]:
    try:
        found = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(token) for name, token in found.items()} if isinstance(found, dict) else {}


def _keep_tokens(path: Path, tokens: dict[str, str]) -> None:
    """Writes the tokens to a file that only its owner can read."""
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(tokens, file, indent=1)


def main() -> None:
    """Serves until standard input is closed; prints one line of JSON with the address and the links first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    path = parser.parse_args().config
    config = read_serve_config(path)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s", stream=sys.stderr)
    with stop_by_signals() as stopped, Server(config) as server:
        links = links_of(config, server.store, server.url)
        write_text(path.with_suffix(".address.json"), json.dumps({"url": server.url, "process": os.getpid()}) + "\n")
        print(json.dumps({"url": server.url, "links": links}), flush=True)
        threading.Thread(target=_wait_for_end, args=(stopped,), daemon=True).start()
        while not stopped.wait(1.0) and server.thread.is_alive():
            pass


def _wait_for_end(stopped: threading.Event) -> None:
    """Sets the event when the process at the other end of standard input has closed it, or is gone."""
    with suppress(OSError, ValueError):
        while sys.stdin.buffer.read(4096):
            pass
    stopped.set()


if __name__ == "__main__":
    main()
