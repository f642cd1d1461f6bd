"""Processes that are killed in the middle of saves: what was answered is there, once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from store_objects import image, square

from samtrain.annotator.store import Store, open_store

HERE = Path(__file__).parent
MASKS = 40  # of each of three people; the servers themselves save 300, in test_team.py


class Server:
    """A process that saves masks, and the port at which it does."""

    def __init__(self, url: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
        command = [sys.executable, str(HERE / "saving.py"), url]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    @property
    def port(self) -> int:
        if not hasattr(self, "_port"):
            assert self.process.stdout is not None
            self._port = int(self.process.stdout.readline())
        return self._port

    def kill(self) -> None:
        self.process.kill()  # SIGKILL
        self.process.wait()


@contextmanager
def servers(url: str, count: int) -> Iterator[list[Server]]:
    """Processes that save masks into one database."""
    open_store(url).close()
    started = [Server(url) for _ in range(count)]
    try:
        assert all(server.port for server in started)
        yield started
    finally:
        for server in started:
            server.kill()
            assert server.process.stdout is not None
            server.process.stdout.close()


def test_a_process_killed_while_it_saves_loses_nothing_that_it_answered(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with open_store(url) as store, servers(url, 1) as (server,):
        (a,) = store.add_images([image()])
        answered: list[str] = []
        with socket.create_connection(("127.0.0.1", server.port)) as connection, connection.makefile("rw") as lines:
            lines.write("".join(f"ann {a.id} r{number}\n" for number in range(1000)))
            lines.flush()
            answered += [lines.readline().strip() for _ in range(25)]
            server.kill()  # between two saves, or within one
            answered += the_rest(lines)
        stored = [mask.request for mask in store.masks(a.id)]
        assert 25 <= len(answered) < 1000
        assert stored[: len(answered)] == answered, "a mask that was answered is lost"
        assert len(stored) - len(answered) in (0, 1), "only the save in flight may be there without an answer"
        store.accept(a.id, "ann", square())  # and the database can be written at once


def the_rest(lines) -> list[str]:
    """The answers that had left the server before it died."""
    try:
        return [line.strip() for line in lines if line.endswith("\n")]
    except OSError:  # the connection is reset
        return []


def test_a_team_on_two_servers_saves_each_mask_once(store_url: str) -> None:
    """Three people save 300 masks through two processes and ask again for answers that do not come; one process is killed."""
    with servers(store_url, 2) as both, open_store(store_url) as store:
        rows = store.add_images([image(f"{number}") for number in range(3)])
        wanted = {row.id: [str(uuid.uuid4()) for _ in range(MASKS)] for row in rows}
        saves, lock = [0], threading.Lock()

        def saved() -> None:
            with lock:
                saves[0] += 1
                if saves[0] == MASKS:
                    both[0].kill()

        with ThreadPoolExecutor(3) as people:
            list(people.map(lambda row: work(row.id, wanted[row.id], both, saved), rows))
        found = {row.id: [mask.request for mask in store.masks(row.id)] for row in rows}
        assert found == wanted, "a mask is lost, or there twice"
        assert store.statistics()["masks"]["done"] == 3 * MASKS


def work(image_id: int, requests: list[str], both: list[Server], saved) -> None:
    """Saves masks one by one, every seventh twice, and again on the other server when an answer does not come."""
    place, lines = image_id % 2, None
    for number, request in enumerate(requests):
        repeats = 2 if number % 7 == 0 else 1
        while repeats:
            try:
                lines = lines or socket.create_connection(("127.0.0.1", both[place].port)).makefile("rw")
                lines.write(f"person{image_id} {image_id} {request}\n")
                lines.flush()
                answer = lines.readline().strip()
            except OSError:
                answer = ""
            if answer == request:
                repeats -= 1
                saved()
            else:
                place, lines = 1, None


def test_a_save_takes_as_many_steps_in_a_full_store_as_in_an_empty_one(tmp_path: Path) -> None:
    """Counts steps of SQLite's machine, because a clock would measure the computer."""

    def steps(store: Store, image_id: int) -> int:
        counted = [0]
        pooled = store.database.engine.raw_connection()
        connection = pooled.driver_connection
        pooled.close()  # back into the pool, from where the save takes it
        connection.set_progress_handler(lambda: counted.__setitem__(0, counted[0] + 1), 10)
        store.accept(image_id, "ann", square(request="r"))
        connection.set_progress_handler(None, 0)
        return counted[0]

    with open_store(str(tmp_path / "a.db")) as store:
        rows = store.add_images([image(f"{number:03d}") for number in range(50)])
        empty = steps(store, rows[0].id)
        for row in rows:
            store.add_masks(row.id, "model", [square()] * 40)
        full = steps(store, rows[1].id)
    assert 0 < full < 1.5 * empty, (empty, full)
