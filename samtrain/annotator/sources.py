"""Reads the image that a row of the store names: a file, or a record of a shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samtrain.data.shards import index_tar, read_record


@dataclass(frozen=True)
class SourceImage:
    """The bytes of an image, its name in messages, and the (width, height) that a shard's record gives, None for a file."""

    data: bytes
    name: str
    size: tuple[int, int] | None


def is_record(source: str) -> bool:
    """Returns whether a source is a record of a shard."""
    path, sign, number = source.rpartition("#")
    return bool(sign) and number.isdigit() and path.endswith(".tar")


def stamp_of(source: str) -> str:
    """Returns a text that changes when the file of a source does; raises OSError if it is not there."""
    status = Path(source.rpartition("#")[0] if is_record(source) else source).stat()
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def read_source(source: str) -> SourceImage:
    """Reads a file, or record INDEX of a shard for `TAR#INDEX`.

    Raises OSError if the file is not there, IndexError if the shard has fewer records, and ValueError if it is damaged.
    """
    if is_record(source):
        path, _, number = source.rpartition("#")
        record = read_record(index_tar(path), int(number))
        about = record.annotation["image"]
        return SourceImage(record.image_bytes, record.name, (int(about["width"]), int(about["height"])))
    return SourceImage(Path(source).read_bytes(), source, None)
