"""Shards are SA-1B's tars of `<id>.jpg` + `<id>.json`, read through our own index and written as webdataset writes them.

A *record* is one image with its JSON, ``{"image": {image_id, width, height, file_name}, "annotations": [{id,
segmentation, bbox, area, ...}]}``. If the JSON has `evaluation_only`, which SA-1B has not, it lists what COCO's and LVIS' AP
count and training never sees, above all crowd regions (`iscrowd`). A local tar is read without unpacking, through an index of
its members' offsets.
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

from samtrain.data.coco_fields import is_crowd
from samtrain.data.tar_index import IMAGE_EXTENSIONS, ShardIndex, index_tar, sidecar_path
from samtrain.files import explain_full_disk, publish

__all__ = [
    "IMAGE_EXTENSIONS", "Record", "ShardIndex", "ShardWriter", "expand_urls", "index_tar", "is_remote",
    "parse_annotation", "read_record", "safe_key",
]  # fmt: skip
MAX_KEY_BYTES = 90  # a ustar name holds 100 bytes, which leaves 10 for the extension


@dataclass(frozen=True)
class Record:
    """Holds one image as it is stored, with its parsed JSON; `path` is the tar it came from."""

    key: str
    ext: str
    image_bytes: bytes
    annotation: dict[str, Any]
    path: str

    @property
    def name(self) -> str:
        """Returns the name of the record in messages."""
        return f"{self.path}, record {self.key}"


def is_remote(url: str) -> bool:
    """Returns whether webdataset has to stream it: `https://...`, `s3://...`, `pipe:...`."""
    return re.match(r"pipe:|[a-z][a-z0-9+.-]*://", url) is not None


def expand_urls(spec: str | Path | Iterable[str | Path], key: str = "") -> list[str]:
    """Returns the shards that paths, folders, globs, brace patterns (`a_{000000..000012}.tar`), URLs or a list of these name.

    A glob may match files and folders; a folder stands for the tars in it. The order is as given, and sorted within a glob or
    folder; a shard that is named twice is returned once. Raises ValueError for a name that matches no file; `key` is the
    config key that it then names.
    """
    if isinstance(spec, (str, Path)):
        spec = [spec]
    try:
        found = [url for item in spec for pattern in _expand_braces(str(item)) for url in _expand_path(pattern)]
    except ValueError as error:
        raise ValueError(f"{error} ({key})" if key else str(error)) from error
    if not found:
        raise ValueError("the list of shards is empty: give .tar paths, folders, globs or https:// URLs")
    return list(dict.fromkeys(found))


def _expand_braces(pattern: str) -> Iterable[str]:
    return braceexpand(pattern) if "{" in pattern and not os.path.exists(pattern) else [pattern]


def _expand_path(pattern: str) -> list[str]:
    """Returns the files that match one pattern without braces, or the URL itself."""
    pattern = pattern.removeprefix("file://")
    if is_remote(pattern):
        return [pattern]
    pattern = os.path.expanduser(pattern)
    matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
    files = [file for match in matches for file in (_tars_in(match) if os.path.isdir(match) else [match])]
    # a glob such as folder/* also matches the indices and lists beside the tars
    found = [file for file in files if file.endswith(".tar")] or files
    if not found:
        raise ValueError(
            f"{pattern!r} matches no shard: give a .tar, a folder of .tar files, a glob, a brace pattern or a URL"
        )
    return found


def _tars_in(folder: str) -> list[str]:
    return sorted(glob.glob(os.path.join(glob.escape(folder), "*.tar")))


def read_record(index: ShardIndex, i: int) -> Record:
    """Reads record i of a tar; raises ValueError that names it if bytes are missing or its JSON is not in SA-1B's form."""
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
    """Returns the bytes of image and JSON; `os.pread` uses no file position, so workers and threads do not interfere."""
    found = []
    descriptor = os.open(index.path, os.O_RDONLY)
    try:
        for offset, size in zip(index.offsets[i].tolist(), index.sizes[i].tolist(), strict=True):
            data = os.pread(descriptor, size, offset)
            while 0 < len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
                data += more
            if len(data) < size:
                end = offset + len(data)
                raise ValueError(f"{name}: the tar ends at byte {end}, so it was cut while in use: copy it again")
            found.append(data)
    finally:
        os.close(descriptor)
    return found


def parse_annotation(data: bytes, name: str) -> dict[str, Any]:
    """Returns the JSON of a record, checked for SA-1B's form; raises ValueError that begins with `name`."""
    try:
        annotation = json.loads(data)
    except (ValueError, RecursionError) as error:  # the base class of JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{name}: its JSON cannot be parsed ({error}): write it again, or set data.on_error=skip") from error
    form = '{"image": {"width": int, "height": int}, "annotations": [{"segmentation": RLE}]}'
    if not isinstance(annotation, dict) or not isinstance(annotation.get("image"), dict):
        raise ValueError(f"{name}: its JSON has no 'image': write it as {form}")
    sides = [annotation["image"].get(side) for side in ("width", "height")]
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{name}: its JSON gives {sides} as width and height: write it as {form}")
    objects = annotation.get("annotations")
    if not isinstance(objects, list) or not all(isinstance(o, dict) and "segmentation" in o for o in objects):
        raise ValueError(f"{name}: its JSON has no list of annotations that each have a segmentation: write it as {form}")
    return _set_crowds_apart(annotation, name)


def _set_crowds_apart(annotation: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the JSON with crowd regions among `evaluation_only` instead of `annotations`, so that nobody trains on them."""
    others = annotation.get("evaluation_only", [])
    if not isinstance(others, list) or not all(isinstance(o, dict) and "segmentation" in o for o in others):
        raise ValueError(f"{name}: its JSON has an 'evaluation_only' that is no list of annotations: leave it out")
    try:
        crowds = [is_crowd(each) for each in annotation["annotations"]]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not any(crowds):
        return annotation
    own = list(zip(annotation["annotations"], crowds, strict=True))
    objects, regions = [each for each, crowd in own if not crowd], [each for each, crowd in own if crowd]
    return {**annotation, "annotations": objects, "evaluation_only": [*others, *regions]}


def safe_key(name: str) -> str:
    """Returns a file name (without extension) as a key that every reader accepts: no dots, no spaces, not too long."""
    key = re.sub(r"[^\w/-]", "_", name).strip("/")
    if len(key.encode()) <= MAX_KEY_BYTES:
        return key
    return f"{key.encode()[:60].decode(errors='ignore')}_{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


class ShardWriter:
    """Writes records to `<directory>/<prefix>_000000.tar`, ..., `max_count` in each; equal records give equal bytes.

    A shard gets its name only when it is complete and on disk. In a `with` block an exception drops the unfinished shard.
    """

    def __init__(self, directory: str | Path, prefix: str, *, max_count: int = 1000, start_index: int = 0) -> None:
        if max_count < 1:
            raise ValueError(f"max_count is {max_count}: give 1 or more records per shard")
        self.directory, self.prefix, self.max_count = Path(directory), prefix, max_count
        self.paths: list[Path] = []
        self._start, self._count = start_index, 0
        self._keys: set[str] = set()
        self._tar: TarWriter | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        for unfinished in self.directory.glob(f"{glob.escape(prefix)}_*.tar.partial"):  # left by a killed process
            unfinished.unlink()

    def write(self, key: str, image_bytes: bytes, ext: str, annotation: dict[str, Any]) -> None:
        """Appends a record; its JSON's `file_name` becomes the name under which the image is stored."""
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
        """Finishes the last shard and returns the paths of all shards."""
        if self._tar is not None:
            self._finish()
        return self.paths

    def abandon(self) -> None:
        """Drops the unfinished shard; the finished ones stay."""
        if self._tar is not None:
            Path(f"{self._next_path()}.partial").unlink(missing_ok=True)
            for file in (self._tar, self._file):
                with suppress(OSError):  # a full disk has no room for the bytes that are still buffered
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
            raise ValueError(f"not every reader of shards accepts the key {key!r}: pass it through safe_key")
        if key in self._keys:
            raise ValueError(f"the key {key!r} was written before: rename one of the two images")
        if ext not in IMAGE_EXTENSIONS:
            raise ValueError(f"the image {key!r} has the extension {ext!r}: use one of {', '.join(IMAGE_EXTENSIONS)}")

    def _finish(self) -> None:
        """Ends the archive and gives it its name."""
        path = self._next_path()
        assert self._tar is not None
        with explain_full_disk(path):
            self._tar.close()
            self._file.close()
            sidecar_path(str(path)).unlink(missing_ok=True)  # the index of an earlier file of this name
            publish(Path(f"{path}.partial"), path)
        self.paths.append(path)
        self._tar, self._count = None, 0


def _to_plain(value: Any) -> Any:
    """Returns NumPy scalars and arrays as plain numbers and lists."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value)} cannot be written as JSON")
