"""The store as one object."""

from __future__ import annotations

from collections.abc import Callable

from samtrain.annotator.store.database import Database
from samtrain.annotator.store.images import Images
from samtrain.annotator.store.leases import Leases
from samtrain.annotator.store.masks import Masks
from samtrain.annotator.store.people import People, Progress
from samtrain.annotator.store.statistics import Statistics


class Store(Images, Leases, Masks, People, Progress, Statistics):
    """Everything that must survive a crash: one transaction for each call, on disk when the call returns.

    Threads may share a store; a process that forks opens its own.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def close(self) -> None:
        """Closes all connections."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(url: str, *, clock: Callable[[], float] | None = None) -> Store:
    """Opens the database at a URL (sqlite:////PATH, postgresql://...) or the path of a SQLite file, and creates its tables.

    Raises StoreError if it cannot be opened, belongs to another program, or is of another schema version.
    """
    return Store(Database(url, clock))
