"""Fixtures of the browser tool's tests: a store in each kind of database, and a PostgreSQL that lives as long as the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="needs the extra annotate")

from samtrain.annotator.store import Store, open_store  # noqa: E402


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'annotations.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def store(store_url: str, clock: Clock) -> Iterator[Store]:
    """An empty store with the tests' clock."""
    with open_store(store_url, clock=clock) as store:
        yield store


def _programs() -> Path | None:
    """The folder of initdb and postgres: on the path, or where Debian puts the newest version."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server for these tests, without the name of a database."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's server programs are not installed (Debian: apt-get install postgresql)")
    become: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        if "postgres" not in [user.pw_name for user in pwd.getpwall()] or shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        become = ["runuser", "-u", "postgres", "--"]
    folder = Path(tempfile.mkdtemp(prefix="samtrain_postgres_"))
    folder.chmod(0o777)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "cwd": "/", "check": True}
    subprocess.run([*become, programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync"], **quiet)  # type: ignore[call-overload]
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    control = [*become, programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    subprocess.run([*control, "-o", options, "start"], **quiet)  # type: ignore[call-overload]
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)  # type: ignore[call-overload]
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of an empty PostgreSQL database; what an earlier test left in it is gone."""
    import psycopg

    url = f"{postgres_server}/postgres"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return url
