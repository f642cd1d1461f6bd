"""Durability: complete-or-absent files, locks, work that is done once, digests, and what to do about a full disk.

A process may be killed, or the power cut, at any moment. After either a file that was written here has its old content or
its new one, and a piece of work is either recorded as done or done again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # file systems that are mounted without locks
LOCKS = "SAMTRAIN_LOCKS"  # "off" in the environment: nothing is locked
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # no space left on the disk, or in the user's quota
ALMOST_NOTHING = 1 << 20  # bytes: what PyTorch's writer leaves of a disk that it could not write to
RESUME = "free some disk space, then run the same command again with run_dir= of this run: it resumes"

# ---- writing


@contextmanager
def atomic_path(path: str | Path, *, sole_writer: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces `path` in one step when the block ends without an error.

    A file that only one process ever writes may set `sole_writer`: the temporary name is then fixed, so that the next write
    overwrites what a killed process left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # otherwise the name is unique among threads, processes and the machines that share the folder
    suffix = "partial" if sole_writer else f"{os.getpid()}_{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(f".{path.name}.{suffix}")
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Gives a finished file or folder its final name in one step, in such a way that both survive a power cut."""
    sync(temporary)  # first the content, because the new name must never show less
    os.replace(temporary, path)
    sync(path.parent)


def write_text(path: Path, text: str, cure: str = RESUME) -> None:
    """Writes a UTF-8 text file that is complete or absent, even after a power cut."""
    with explain_full_disk(path, cure), atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes, cure: str = RESUME) -> None:
    """Writes a binary file that is complete or absent, even after a power cut."""
    with explain_full_disk(path, cure), atomic_path(path) as temporary:
        temporary.write_bytes(data)


def sync(path: Path) -> None:
    """Waits until a file or folder is on disk; sync a folder to make a new name in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explain_full_disk(path: Path, cure: str = RESUME, of_libraries: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Adds the file's name and the cure to the error of a full disk, which names neither.

    `of_libraries` are errors by which a library that writes the file itself may report a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(error.errno, f"{error.strerror} ({cure})", str(path)) from error
    except of_libraries as error:
        if not _is_full(path, error):
            raise
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({cure})", str(path)) from error


def _is_full(path: Path, error: Exception) -> bool:
    """Returns whether a library's error is due to a full disk: by its words, or by what is left there now."""
    words = str(error).lower()
    if "no space left" in words or "os error 28" in words or "quota" in words:
        return True
    folder = next(each for each in (path.parent, *path.parent.absolute().parents) if each.is_dir())
    return shutil.disk_usage(folder).free < ALMOST_NOTHING


# ---- doing work once


@dataclass(frozen=True)
class Done:
    """The result of a piece of work, as plain JSON, and the wall-clock seconds that it took."""

    result: Any
    wall: float


def do_once(path: Path, work: Callable[[], Any]) -> Done:
    """Returns the result that `path` holds from an earlier call, or calls `work()` and stores its result there.

    The result always comes back through JSON, so that it is the same the first time and later.
    """
    if not path.is_file():
        begin = time.monotonic()
        result = work()
        write_done(path, Done(result, round(time.monotonic() - begin, 3)))
    return read_done(path)


def write_done(path: Path, done: Done) -> None:
    """Stores the result of a piece of work, complete or not at all."""
    write_text(path, json.dumps({"result": done.result, "wall": done.wall}, allow_nan=False))


def read_done(path: Path) -> Done:
    """Returns the result of a piece of work that is stored at `path`."""
    return Done(**json.loads(path.read_text()))


def write_once(path: Path, text: str) -> str:
    """Writes a text file unless it exists, and returns its content: of several processes the first decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}_{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        with suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename, a link never replaces a file
    finally:
        temporary.unlink(missing_ok=True)
    return path.read_text(encoding="utf-8")


def build_once(target: Path, build: Callable[[Path], dict[str, Any]], manifest: str) -> Path:
    """Returns the folder `target`; calls `build(folder)` to fill it if it does not exist yet.

    `build` works in `<target>.partial`, where it finds the files of an interrupted run, and returns the content of the JSON
    file `manifest`. The manifest is written last, then the folder gets its name. If several processes call this, one builds
    and the others wait.
    """
    if not (target / manifest).is_file():
        with locked(target.with_name(f".{target.name}.lock")):
            if not (target / manifest).is_file():
                partial = target.with_name(f"{target.name}.partial")
                partial.mkdir(parents=True, exist_ok=True)
                write_text(partial / manifest, json.dumps(build(partial), indent=1) + "\n")
                with explain_full_disk(target):
                    publish(partial, target)
    return target


# ---- locks and digests

_THREADS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # a POSIX lock does not exclude threads


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock on the file `path`, which one thread of one process can hold at a time; the file itself stays.

    The system frees a POSIX lock when its process ends, however it ends, and child processes do not inherit it. Raises
    BlockingIOError if the lock is taken and `wait` is false, and ValueError if the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    threads = _THREADS[os.path.abspath(path)]
    if not threads.acquire(blocking=wait):
        raise BlockingIOError(errno.EAGAIN, "another thread holds the lock", str(path))
    try:
        with open(path, "w") as file:
            if os.environ.get(LOCKS) != "off":
                _lock(file.fileno(), path, wait)
            yield
    finally:
        threads.release()


def _lock(descriptor: int, path: Path, wait: bool) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # what some systems raise instead of BlockingIOError
        raise BlockingIOError(errno.EAGAIN, "another process holds the lock", str(path)) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise ValueError(
            f"the file system of {path.parent} has no file locks ({error.strerror}), which keep two processes from working in "
            "one folder: give a run_dir and data_dir on another disk, have it mounted with locks, or, if only one process at a "
            f"time uses these folders, set {LOCKS}=off in the environment"
        ) from error


def printable(name: str) -> str:
    """Returns a file's name as text that a log can hold: bytes that are not UTF-8 become escapes such as \\udce9."""
    return name.encode("utf-8", "backslashreplace").decode()


def digest(path: str | Path) -> str:
    """Returns the sha256 of a file as hex, or that of the names and contents of all files in a folder."""
    state = hashlib.sha256()
    if os.path.isdir(path):
        for each in sorted(each for each in Path(path).rglob("*") if each.is_file()):
            state.update(f"{each.relative_to(path)} {digest(each)}\n".encode(errors="surrogateescape"))
        return state.hexdigest()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()
