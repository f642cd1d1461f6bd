"""Folders that are made once: nobody sees them half made, and of many processes that want one, one makes it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)  # no room on the disk, or none left of the user's share
GO_ON = "make room on the disk and give the same command again, with run_dir= of this run: it goes on"


def make_once(target: Path, make: Callable[[Path], dict[str, Any]], manifest: str) -> Path:
    """Returns `target`, after `make(folder)` has filled it if it was not there.

    `make` works in `<target>.partial`, where it finds what an interrupted run has left, and returns what the file
    `manifest` is to hold; that is written last, then the folder gets its name. Other processes wait at a lock that the
    system frees when its holder dies.
    """
    if not (target / manifest).is_file():
        with _only_one(target.with_name(f".{target.name}.lock")):
            if not (target / manifest).is_file():
                partial = target.with_name(f"{target.name}.partial")
                partial.mkdir(parents=True, exist_ok=True)
                write_whole(partial / manifest, json.dumps(make(partial), indent=1) + "\n")
                os.replace(partial, target)
    return target


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, text: str) -> None:
    """A text file that is there whole or not at all."""
    beside = path.with_name(f"{path.name}.new")
    with naming_full_disk(path):
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


@contextmanager
def naming_full_disk(path: Path, cure: str = GO_ON) -> Iterator[None]:
    """The error of a full disk, which for an open file names none, says which file it was and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(error.errno, f"{error.strerror} ({cure})", str(path)) from error
