"""Shards: SA-1B's tars of `<id>.jpg` + `<id>.json`, read through our own index and written as webdataset writes them.

A *record* is one image with its JSON, ``{"image": {image_id, width, height, file_name}, "annotations": [{id,
segmentation, bbox, area, ...}]}``. A local tar is read as it is, through the index of where each member lies.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from webdataset.writer import TarWriter

from samtrain.data.tar_index import IMAGE_EXTENSIONS, ShardIndex, index_tar, sidecar_path
from samtrain.files import explain_full_disk, sync

__all__ = [
    "IMAGE_EXTENSIONS", "Record", "ShardIndex", "ShardWriter", "expand_urls", "index_tar", "is_remote",
    "parse_annotation", "read_record", "safe_key",
]  # fmt: skip
MAX_KEY_BYTES = 90  # a ustar name holds 100 bytes; the rest is for the extension


@dataclass(frozen=True)
class Record:
    """One image as stored, with its parsed JSON; `path` is the tar it came from."""

    key: str
    ext: str
    image_bytes: bytes
    annotation: dict[str, Any]
    path: str

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.path}, record {self.key}"


def is_remote(url: str) -> bool:
    """True for what webdataset has to stream: `https://...`, `s3://...`, `pipe:...`."""
    return re.match(r"pipe:|[a-z][a-z0-9+.-]*://", url) is not None


def expand_urls(spec: str | Path | Iterable[str | Path]) -> list[str]:
    """The shards named by paths, folders, globs, brace patterns (`a_{000000..000012}.tar`), URLs, or a list of them.

    Order is as given, sorted inside a glob or folder; what is named twice comes once. Raises ValueError for what
    matches no file.
    """
    if isinstance(spec, (str, Path)):
        spec = [spec]
    found = [url for item in spec for pattern in _expand_braces(str(item)) for url in _expand_path(pattern)]
    if not found:
        raise ValueError("no shards: the list of urls is empty; give .tar paths, folders, globs or https:// URLs")
    return list(dict.fromkeys(found))


def _expand_braces(pattern: str) -> Iterable[str]:
    return braceexpand(pattern) if "{" in pattern and not os.path.exists(pattern) else [pattern]


def _expand_path(pattern: str) -> list[str]:
    """Files of one pattern without braces, or the URL itself."""
    pattern = pattern.removeprefix("file://")
    if is_remote(pattern):
        return [pattern]
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        found = sorted(glob.glob(os.path.join(glob.escape(pattern), "*.tar")))
    else:
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise ValueError(
            f"no shard matches {pattern!r}: give a .tar, a folder of .tar files, a glob, a brace pattern or a URL"
        )
    return found


def read_record(index: ShardIndex, i: int) -> Record:
    """Record i of a tar; raises ValueError naming tar and record if bytes are missing or the JSON has another form."""
    name = f"{index.path}, record {index.key(i)}"
    image_bytes, json_bytes = _read_members(index, i, name)
    return Record(
        key=index.key(i),
        ext=index.extensions[i].decode(),
        image_bytes=image_bytes,
        annotation=parse_annotation(json_bytes, name),
        path=index.path,
    )


def _read_members(index: ShardIndex, i: int, name: str) -> list[bytes]:
    """The bytes of image and JSON; `os.pread` needs no file position, so workers and threads do not meet."""
    found = []
    descriptor = os.open(index.path, os.O_RDONLY)
    try:
        for offset, size in zip(index.offsets[i].tolist(), index.sizes[i].tolist(), strict=True):
            data = os.pread(descriptor, size, offset)
            while 0 < len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
                data += more
            if len(data) < size:
                end = offset + len(data)
                raise ValueError(f"{name}: the tar ended at byte {end}; it was cut while in use, copy it again")
            found.append(data)
    finally:
        os.close(descriptor)
    return found


def parse_annotation(data: bytes, name: str) -> dict[str, Any]:
    """The JSON of a record, checked for SA-1B's form; raises ValueError that begins with `name`."""
    try:
        annotation = json.loads(data)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError both are
        raise ValueError(f"{name}: its JSON is no JSON ({error}): write it again, or set data.on_error=skip") from error
    form = '{"image": {"width": int, "height": int}, "annotations": [{"segmentation": RLE}]}'
    if not isinstance(annotation, dict) or not isinstance(annotation.get("image"), dict):
        raise ValueError(f"{name}: its JSON holds no image; the form is {form}")
    sides = [annotation["image"].get(side) for side in ("width", "height")]
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{name}: its JSON gives width, height as {sides}; the form is {form}")
    objects = annotation.get("annotations")
    if not isinstance(objects, list) or not all(isinstance(o, dict) and "segmentation" in o for o in objects):
        raise ValueError(f"{name}: its JSON holds no list of annotations with a segmentation each; the form is {form}")
    return annotation


def safe_key(name: str) -> str:
    """A file name (without extension) as a key that every reader understands: no dots, no spaces, not too long."""
    key = re.sub(r"[^\w/-]", "_", name).strip("/")
    if len(key.encode()) <= MAX_KEY_BYTES:
        return key
    return f"{key.encode()[:60].decode(errors='ignore')}_{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


class ShardWriter:
    """Writes records to `<directory>/<prefix>_000000.tar`, ..., `max_count` in each; equal records give equal bytes.

    A shard gets its name only when it is whole and on disk. In a `with` block an exception drops the shard that was
    begun.
    """

    def __init__(self, directory: str | Path, prefix: str, *, max_count: int = 1000, start_index: int = 0) -> None:
        if max_count < 1:
            raise ValueError(f"max_count is {max_count}, a shard holds at least 1 record")
        self.directory, self.prefix, self.max_count = Path(directory), prefix, max_count
        self.paths: list[Path] = []
        self._start, self._count = start_index, 0
        self._keys: set[str] = set()
        self._tar: TarWriter | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        for half_written in self.directory.glob(f"{glob.escape(prefix)}_*.tar.partial"):
            half_written.unlink()

    def write(self, key: str, image_bytes: bytes, ext: str, annotation: dict[str, Any]) -> None:
        """Append a record; its JSON's `file_name` becomes the name under which the image is stored."""
        ext = ext.lower().lstrip(".")
        self._check(key, ext)
        annotation = {**annotation, "image": {**annotation["image"], "file_name": f"{key}.{ext}"}}
        text = json.dumps(annotation, separators=(",", ":"), default=_to_plain)
        with explain_full_disk(self._next_path()):
            if self._tar is None:
                self._file = open(f"{self._next_path()}.partial", "wb")  # noqa: SIM115, closed in _finish
                self._tar = TarWriter(self._file, encoder=False, mtime=0)
            self._tar.write({"__key__": key, ext: image_bytes, "json": text.encode()})
        self._keys.add(key)
        self._count += 1
        if self._count == self.max_count:
            self._finish()

    def close(self) -> list[Path]:
        """Finish the last shard and return the paths of all."""
        if self._tar is not None:
            self._finish()
        return self.paths

    def abandon(self) -> None:
        """Drop the shard that was begun; those already finished stay."""
        if self._tar is not None:
            Path(f"{self._next_path()}.partial").unlink(missing_ok=True)
            for file in (self._tar, self._file):
                with suppress(OSError):  # what is still buffered does not fit on a full disk
                    file.close()
            self._tar = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, value, traceback) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abandon()

    def _next_path(self) -> Path:
        return self.directory / f"{self.prefix}_{self._start + len(self.paths):06d}.tar"

    def _check(self, key: str, ext: str) -> None:
        if key != safe_key(key) or not key:
            raise ValueError(f"{key!r} is no key that every reader of shards understands; safe_key makes one of it")
        if key in self._keys:
            raise ValueError(f"key {key!r} was written before: images of one name cannot be told apart, rename one")
        if ext not in IMAGE_EXTENSIONS:
            raise ValueError(f"image {key!r} has extension {ext!r}, allowed are {', '.join(IMAGE_EXTENSIONS)}")

    def _finish(self) -> None:
        """End the archive, bring it to disk, give it its name, drop an index of an earlier file of that name."""
        path = self._next_path()
        assert self._tar is not None
        with explain_full_disk(path):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            sidecar_path(str(path)).unlink(missing_ok=True)
            os.replace(f"{path}.partial", path)
            sync(self.directory)
        self.paths.append(path)
        self._tar, self._count = None, 0


def _to_plain(value: Any) -> Any:
    """NumPy scalars and arrays as JSON knows them."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value)} cannot be written as JSON")
