"""The index of a local tar: the offsets of each record's image and JSON, stored in a NumPy sidecar file.

webdataset's own reader needs adjacent pairs and ends silently at a cut tar. SA-1B's tars do not guarantee either, so we scan
the headers once (11,000 pairs take less than a second) and then read any record by its offset.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from samtrain.files import atomic_path

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
BLOCK = 512  # bytes of a tar block (POSIX ustar)
INDEX_VERSION = 2  # part of the sidecar's stamp: raise it when the arrays change


@dataclass(frozen=True)
class ShardIndex:
    """Locates the n records of a local tar, in the order of their images.

    keys:          (n,) bytes, utf-8
    extensions:    (n,) bytes
    offsets, sizes: (n, 2) int64, bytes of image and JSON
    problems:      what was left out and why; empty for a tar without faults
    """

    path: str
    keys: np.ndarray
    extensions: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, i: int) -> str:
        """Returns the name of record i: its path in the tar without `./` and extension."""
        return self.keys[i].decode(errors="surrogateescape")


def index_tar(path: str | Path, *, on_error: str = "raise", cache_dir: str | Path | None = None) -> ShardIndex:
    """Returns the index of a local tar, from its sidecar if the tar's size and modification time are unchanged.

    The sidecar is stored beside the tar, or in `cache_dir` (default `$XDG_CACHE_HOME/samtrain`) if that folder is not
    writable. A tar that is cut or has incomplete records raises ValueError; with on_error="skip" its complete records are
    used and the problems are logged.
    """
    check_on_error(on_error)
    path = str(path)
    index = _cached_index(path, cache_dir)
    if index.problems:
        more = f"; and {len(index.problems) - 3} more" if len(index.problems) > 3 else ""
        message = f"{path}: {'; '.join(index.problems[:3])}{more}"
        if on_error == "raise":
            skip = f", or set data.on_error=skip to use its {len(index)} complete records" if len(index) else ""
            raise ValueError(f"{message}. What to do: copy or download it again{skip}")
        logger.warning("%s. Using its %d complete records.", message, len(index))
    return index


def last_records(shards: Sequence[ShardIndex]) -> list[ShardIndex]:
    """Returns the same shards with only the last record of each key."""
    seen: set[bytes] = set()
    kept: list[ShardIndex] = []
    for shard in reversed(shards):
        keys = shard.keys.tolist()
        new = np.array([key not in seen for key in keys], dtype=bool)
        arrays = {name: getattr(shard, name)[new] for name in ("keys", "extensions", "offsets", "sizes")}
        kept.append(replace(shard, **arrays))
        seen.update(keys)
    return kept[::-1]


def check_on_error(on_error: str) -> None:
    """Raises ValueError unless it is "raise" or "skip"."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"data.on_error is {on_error!r}: choose raise or skip")


def _cached_index(path: str, cache_dir: str | Path | None) -> ShardIndex:
    """Returns the index from a sidecar that matches the tar, or scans the tar and stores the index for the next time."""
    status = os.stat(path)
    stamp = hashlib.sha256(f"{INDEX_VERSION} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    beside = sidecar_path(path)
    away = _cache_folder(cache_dir) / f"{hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()}.npz"
    for sidecar in (beside, away):
        index = _load_index(path, sidecar, stamp)
        if index is not None:
            return index
    index = _scan_tar(path)
    saved = os.access(beside.parent, os.W_OK) and _save_index(index, beside, stamp)
    if not saved and not (_make_writable(away.parent) and _save_index(index, away, stamp)):
        logger.warning(
            "The index of %s cannot be stored: neither its folder nor %s is writable. The tar is scanned each time.",
            path, away.parent,
        )  # fmt: skip
    return index


def sidecar_path(path: str) -> Path:
    """Returns the file beside a tar that holds its index."""
    return Path(path + ".index.npz")


def _cache_folder(cache_dir: str | Path | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samtrain"


def _make_writable(folder: Path) -> bool:
    """Makes the folder if its nearest existing parent is writable; returns whether the folder is writable."""
    parent = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    return True


def _load_index(path: str, sidecar: Path, stamp: str) -> ShardIndex | None:
    if not sidecar.is_file():
        return None
    try:
        with np.load(sidecar, allow_pickle=False) as arrays:
            if str(arrays["stamp"]) != stamp:
                return None
            fields = {name: arrays[name] for name in ("keys", "extensions", "offsets", "sizes")}
            return ShardIndex(path=path, problems=tuple(arrays["problems"].tolist()), **fields)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        logger.warning("%s is damaged: the tar is scanned again.", sidecar)
        return None


def _save_index(index: ShardIndex, sidecar: Path, stamp: str) -> bool:
    """Writes the arrays and returns whether that succeeded: on a full disk, training continues without the sidecar."""
    arrays = {name: getattr(index, name) for name in ("keys", "extensions", "offsets", "sizes")}
    try:
        with atomic_path(sidecar) as temporary, open(temporary, "wb") as file:
            np.savez(file, stamp=np.array(stamp), problems=np.array(index.problems, dtype=np.str_), **arrays)
    except OSError as error:
        logger.warning("%s cannot be written (%s).", sidecar, error)
        return False
    return True


def _scan_tar(path: str) -> ShardIndex:
    """Reads the headers of a tar and pairs images with JSONs by name, wherever they are in the tar."""
    # collect images and JSONs by key
    images: dict[str, tuple[int, int, str]] = {}
    jsons: dict[str, tuple[int, int]] = {}
    members, problems = list_members(path)
    for name, offset, size in members:
        key, ext = split_name(name)
        if ext == "json":
            if key in jsons:
                problems.append(f"record {key} has two JSONs, of which the last one counts")
            jsons[key] = (offset, size)
        elif ext:
            if key in images:
                problems.append(f"record {key} has two images, .{images[key][2]} and .{ext}, of which the last one counts")
            images[key] = (offset, size, ext)
    # pair them, in the order of the images
    problems += [f"record {key} has no image" for key in jsons if key not in images]
    problems += [f"record {key} has no JSON" for key in images if key not in jsons]
    if not members and not problems:
        problems.append("the tar holds no files")
    keys = sorted((key for key in images if key in jsons), key=lambda key: images[key][0])
    return ShardIndex(
        path=path,
        keys=np.array([key.encode(errors="surrogateescape") for key in keys], dtype=np.bytes_),
        extensions=np.array([images[key][2].encode() for key in keys], dtype=np.bytes_),
        offsets=np.array([(images[key][0], jsons[key][0]) for key in keys], dtype=np.int64).reshape(-1, 2),
        sizes=np.array([(images[key][1], jsons[key][1]) for key in keys], dtype=np.int64).reshape(-1, 2),
        problems=tuple(problems),
    )


def split_name(name: str) -> tuple[str, str]:
    """Returns a member's key and its extension in lower case; the extension is empty if it belongs to no record."""
    key, ext = os.path.splitext(os.path.normpath(name))
    ext = ext[1:].lower()
    hidden = os.path.basename(key).startswith(".")  # macOS writes `._name` beside each file
    return key, ext if ext in (*IMAGE_EXTENSIONS, "json") and not hidden else ""


def list_members(path: str) -> tuple[list[tuple[str, int, int]], list[str]]:
    """Returns (name, offset, size) of the complete files in a tar, and what is wrong with it.

    A file may hold several tars one after another, as `cat a.tar b.tar` writes it: the files of all of them are returned.
    """
    length = os.path.getsize(path)
    members: list[tuple[str, int, int]] = []
    start: int | None = 0
    with open(path, "rb") as file:
        while start is not None:
            found, end, problem = _list_archive(file, start, length)
            members += found
            if problem:
                return members, [problem]
            start = _next_archive(file, end)
    return members, []


def _list_archive(file: BinaryIO, start: int, length: int) -> tuple[list[tuple[str, int, int]], int, str]:
    """Returns the complete files of the archive at byte `start`, the byte where its end mark begins, and what is wrong."""
    members: list[tuple[str, int, int]] = []
    end = start
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if tar.offset <= end:
                    return members, end, f"this tar is damaged: the file at byte {end} has a size below 0"
                end = tar.offset  # where the next header belongs
                if member.isreg() and not member.issparse() and end <= length:
                    members.append((member.name, member.offset_data, member.size))
    except tarfile.ReadError as error:
        if end == 0:
            return [], end, f"this is not an uncompressed tar ({error}; a .tar.gz has to be unpacked to .tar)"
    file.seek(end)
    if file.read(BLOCK) == bytes(BLOCK):
        return members, end, ""
    if end == start > 0:
        return [], end, f"this tar is damaged: after its end mark, from byte {start} on, it holds data that are no tar"
    return members, end, f"this tar is cut: it has {length} bytes and no end-of-archive mark after byte {min(end, length)}"


def _next_archive(file: BinaryIO, end: int) -> int | None:
    """Returns the first byte after the zeros of an end mark, which begins a block, or None if the file ends with zeros."""
    file.seek(end)
    while chunk := file.read(1 << 20):
        if chunk.count(0) < len(chunk):
            return end + (len(chunk) - len(chunk.lstrip(b"\0"))) // BLOCK * BLOCK
        end += len(chunk)
    return None
