"""Opens the database, runs transactions on it, and says in sentences what is wrong when that fails."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from samtrain.annotator.store.errors import StoreError
from samtrain.annotator.store.schema import META, METADATA, SCHEMA_VERSION

log = logging.getLogger(__name__)
T = TypeVar("T")

BUSY_SECONDS = 10.0  # how long a write waits for another process's write before it is tried again
ATTEMPTS = 4
CONNECTIONS = 10  # that stay open, and as many more in a rush; PostgreSQL allows 100 in all
# what PostgreSQL asks to be tried again: serialization failure, deadlock, lock not available
TRY_AGAIN = ("40001", "40P01", "55P03")
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "afs", "fuse.glusterfs", "lustre", "ceph", "beegfs")


class Database:
    """Holds the connections to one database; a process that forks opens its own.

    Every write is one transaction. SQLite is in WAL mode, a commit waits until it is on disk (synchronous=FULL), and a write
    takes the lock at its start (BEGIN IMMEDIATE), so that what it has read stays true. PostgreSQL locks the rows it reads.

    url:    a SQLAlchemy URL, or the path of a SQLite file
    clock:  seconds since 1970; None: the clock of the database's machine, so that several servers agree
    """

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        self.url = _parse(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.clock = clock
        self.engine = self._connect()
        self.explained(self._create)

    def close(self) -> None:
        self.engine.dispose()

    def __str__(self) -> str:
        return str(self.url.database) if self.sqlite else self.url.render_as_string(hide_password=True)

    # ---- transactions

    def read(self, work: Callable[[Connection], T]) -> T:
        """Returns `work(connection)`, which sees one state of the database and writes nothing."""

        def once() -> T:
            with self.engine.connect() as connection, connection.begin():
                return work(connection)

        return self.explained(once)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Returns `work(connection)` after its changes are on disk; it may be called again if another write came between."""

        def once() -> T:
            with self.engine.execution_options(writes=True).connect() as connection, connection.begin():
                return work(connection)

        return self.explained(once)

    def now(self, connection: Connection) -> float:
        """Returns the time that leases are measured by."""
        if self.clock is not None:
            return self.clock()
        if self.sqlite:  # its processes share one machine
            return time.time()
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def explained(self, work: Callable[[], T]) -> T:
        """Runs `work`, again if the database was busy; what fails for good is a StoreError that names the cure."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return work()
            except PoolTimeout as error:
                raise StoreError(f"the database {self} is overloaded ({error}): try again, or use PostgreSQL") from error
            except DBAPIError as error:
                if not _is_busy(error):
                    reason = _explain(error, self)
                    if reason is None:
                        raise
                    raise StoreError(reason) from error
                log.info("The database %s is busy (attempt %d of %d).", self, attempt, ATTEMPTS)
                last = error
                time.sleep(0.05 * attempt)
        raise StoreError(
            f"the database {self} was busy for {ATTEMPTS * BUSY_SECONDS:.0f} s, because another process keeps writing to it or "
            f"holds a lock: end that process, or use PostgreSQL for a team (annotate.store=postgresql://...){self._hint()}"
        ) from last

    # ---- opening

    def _connect(self) -> Engine:
        if not self.sqlite:
            return _engine(self.url, pool_pre_ping=True)
        _check_place(Path(str(self.url.database)))
        engine = _engine(self.url, connect_args={"timeout": BUSY_SECONDS})

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # transactions begin below, not by the driver's own rule
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

        return engine

    def _create(self) -> None:
        """Creates the tables unless they are there, and checks that they are of this version."""
        with self.engine.execution_options(writes=True).connect() as connection, connection.begin():
            if not self.sqlite:  # two servers that start together
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('samtrain annotator'))"))
            tables = set(inspect(connection).get_table_names())
            if "meta" not in tables:
                if clash := sorted(tables & set(METADATA.tables)):
                    raise StoreError(
                        f"the database {self} holds tables of another program ({', '.join(clash)}): give annotate.store "
                        "another file or database"
                    )
                METADATA.create_all(connection)
                connection.execute(insert(META).values(name="schema_version", value=json.dumps(SCHEMA_VERSION)))
                return
            found = connection.execute(select(META.c.value).where(META.c.name == "schema_version")).scalar()
        if found != json.dumps(SCHEMA_VERSION):
            raise StoreError(
                f"the database {self} has schema version {found}, and this samtrain reads version {SCHEMA_VERSION}: export it "
                "with the samtrain that wrote it (annotate.export=[sa1b]) and import that, or give annotate.store another file"
            )

    def _hint(self) -> str:
        kind = network_file_system(Path(str(self.url.database))) if self.sqlite else None
        if kind is None:
            return ""
        return f". The file lies on a network file system ({kind}), where SQLite's locks do not work: put it on a local disk"


def _parse(url: str) -> URL:
    if "://" not in url:
        return URL.create("sqlite", database=os.path.abspath(url))
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(f"annotate.store is no database URL ({error}): give sqlite:////PATH or postgresql://...") from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(f"annotate.store is a {parsed.get_backend_name()} database: give sqlite:////PATH or postgresql://...")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("annotate.store names no file: give sqlite:////PATH, because a database in memory is lost")
    return parsed


def _engine(url: URL, **options: Any) -> Engine:
    try:
        return create_engine(url, json_serializer=_to_json, pool_size=CONNECTIONS, max_overflow=CONNECTIONS, **options)
    except (ImportError, NoSuchModuleError) as error:
        raise StoreError(f"PostgreSQL needs a driver ({error}): pip install 'samtrain[annotate,postgres]'") from error


def _to_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _check_place(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder of annotate.store, {path.parent}, cannot be made ({error.strerror})") from error
    if path.is_dir():
        raise StoreError(f"annotate.store is the folder {path}: give a file in it, such as {path / 'annotations.db'}")
    if kind := network_file_system(path):
        log.warning(
            "The database %s lies on a network file system (%s), where SQLite may lose writes. Put annotate.store on a local "
            "disk, or use postgresql:// for a team.", path, kind,
        )  # fmt: skip


def network_file_system(path: Path, mounts: str = "/proc/mounts") -> str | None:
    """Returns the kind of the network file system that holds `path`, None on a local disk or if that is unknown."""
    try:
        lines = [line.split(" ") for line in Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return None
    place, found, kind = path.resolve(), -1, ""
    for line in lines:
        if len(line) > 2:
            folder = Path(line[1].replace("\\040", " "))
            if place.is_relative_to(folder) and len(folder.parts) >= found:
                found, kind = len(folder.parts), line[2]
    return kind if kind.rstrip("34") in NETWORK_FILE_SYSTEMS else None


def _is_busy(error: DBAPIError) -> bool:
    original = error.orig
    if isinstance(original, sqlite3.OperationalError):
        return "locked" in str(original) or "busy" in str(original)
    return getattr(original, "sqlstate", None) in TRY_AGAIN


def _explain(error: DBAPIError, database: Database) -> str | None:
    """Returns the sentence for an error that the user can mend, None for one of ours."""
    words = str(error.orig).lower()
    if "disk is full" in words or "no space left" in words or getattr(error.orig, "sqlstate", None) == "53100":
        return (
            f"the disk of the database {database} is full, and nothing was written: free some space, then save again, or start "
            "with annotate.store= on another disk"
        )
    if database.sqlite:
        if "not a database" in words or "malformed" in words:
            return f"{database} is no SQLite database, or is damaged: give annotate.store another file, or restore a copy of it"
        if "readonly" in words or "unable to open" in words or "permission" in words:
            return (
                f"the database {database} cannot be written ({error.orig}): SQLite needs the right to write to the file and "
                "to its folder. Change the rights, or give annotate.store another place"
            )
        if "i/o error" in words or "locking protocol" in words:
            return f"the disk of the database {database} failed ({error.orig}){database._hint()}"
        return None
    if isinstance(error, (OperationalError, InterfaceError)) or error.connection_invalidated:
        return (
            f"the database {database} does not answer ({str(error.orig).strip()}): check that its server runs, "
            "and the name, user and password in the URL"
        )
    return None
