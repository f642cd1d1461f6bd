"""What the store says when its database cannot be opened or written."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from store_objects import image, square

from samtrain.annotator.store import Store, StoreError, open_store
from samtrain.annotator.store import database as database_module
from samtrain.annotator.store.database import network_file_system


def test_sqlite_waits_for_the_disk_and_lets_readers_read(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "a.db")) as store:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        found = store.database.read(lambda c: [c.execute(text(f"PRAGMA {name}")).scalar() for name in pragmas])
        assert found == ["wal", 2, 1]
        (a,) = store.add_images([image()])
        with store.database.engine.execution_options(writes=True).connect() as writer, writer.begin():
            writer.execute(text("UPDATE images SET rank = 5"))
            assert store.image(a.id).rank == 0, "a reader neither waits nor sees what is not committed"
        assert store.image(a.id).rank == 5


def test_a_store_opens_again_with_what_was_saved(store_url: str) -> None:
    with open_store(store_url) as store:
        (a,) = store.add_images([image()])
        saved = store.accept(a.id, "ann", square(request="r"))
    with open_store(store_url) as store:
        assert store.masks(a.id) == [saved]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("mysql://a/b", "mysql database"),
        ("no such://x", "no database URL"),
        ("postgresql://nobody@127.0.0.1:1/none?connect_timeout=2", "does not answer"),
    ],
)
def test_a_wrong_url_says_what_to_give(url: str, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        open_store(url)


def test_a_password_is_never_shown() -> None:
    with pytest.raises(StoreError) as error:
        open_store("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value)


def test_a_folder_or_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is the folder"):
        open_store(str(tmp_path))
    (tmp_path / "text.db").write_text("This is a text, and no database at all." * 100)
    with pytest.raises(StoreError, match="text.db is no SQLite database.*annotate.store"):
        open_store(str(tmp_path / "text.db"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        open_store(str(tmp_path / "file" / "a.db"))


def test_tables_of_another_program_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE images (x)")
    with pytest.raises(StoreError, match="tables of another program"):
        open_store(str(path))
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("images",)]


def test_another_schema_version_is_refused(store_url: str) -> None:
    with open_store(store_url) as store:
        store.database.write(lambda c: c.execute(text("UPDATE meta SET value = '99' WHERE name = 'schema_version'")) and None)
    with pytest.raises(StoreError, match="schema version 99, and this samtrain reads version 1"):
        open_store(store_url)


def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "a.db")) as store:
        (a,) = store.add_images([image()])
        limit = store.database.engine.raw_connection()
        limit.execute("PRAGMA max_page_count=1")  # the file may not grow: what a full disk does
        limit.close()
        saved = 0
        with pytest.raises(StoreError, match="is full, and nothing was written"):
            for _ in range(2000):
                store.accept(a.id, "ann", square(story=["x" * 1000]))
                saved += 1
        assert len(store.masks(a.id)) == saved


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        open_store(str(tmp_path / "a.db"))
    tmp_path.chmod(0o700)


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    open_store(str(path)).close()
    with open_store(f"sqlite:///file:{path}?mode=ro&uri=true") as store, pytest.raises(StoreError, match="cannot be written"):
        store.add_images([image()])


def test_a_busy_database_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.01)
    path = tmp_path / "a.db"
    with open_store(str(path)) as store:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="was busy"):
            store.add_images([image()])
        slept: list[float] = []

        def free(seconds: float) -> None:
            slept.append(seconds)
            blocker.execute("COMMIT") if len(slept) == 1 else None

        monkeypatch.setattr(database_module.time, "sleep", free)
        assert len(store.add_images([image()])) == 1 and len(slept) == 1
        blocker.close()


def test_network_file_systems_are_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n/dev/b {tmp_path}/local ext4 rw 0 0\n")
    assert network_file_system(tmp_path / "a.db", str(mounts)) == "nfs4"
    assert network_file_system(tmp_path / "local" / "a.db", str(mounts)) is None
    assert network_file_system(Path("/elsewhere"), str(mounts)) is None
    assert network_file_system(tmp_path, str(tmp_path / "none")) is None


def test_tokens_are_stored_as_hashes(store: Store) -> None:
    token = store.add_annotator("ann")
    rows = store.database.read(lambda c: c.execute(text("SELECT * FROM annotators")).all())
    assert token not in str(rows)
