"""Identifies images by their pixels, so that copies of one image are known under any name and in any file format."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from samtrain.data.decode import decode_samples
from samtrain.data.shards import index_tar, is_remote, read_record

log = logging.getLogger(__name__)

CONTENTS = "contents.txt"  # beside the shards that `task=prepare` writes: a shard and a digest per line
MAX_DECODED = 100 << 20  # bytes of other tars that are decoded to compare their images, which takes seconds


def content_digest(samples: np.ndarray) -> str:
    """Returns 16 hex digits that are equal for equal images; `samples` is (H, W) or (H, W, 3), as `decode_samples` gives it.

    An image of one value, such as an empty slice, has "": many are alike without being copies of one another. Two of ten
    million different images have the same digits by chance once in a hundred thousand sets.
    """
    if samples.size == 0 or samples.min() == samples.max():
        return ""
    if samples.ndim == 3 and (samples[..., :1] == samples[..., 1:]).all():
        samples = samples[..., 0]  # grey that is stored as colour
    state = hashlib.blake2b(f"{samples.shape} {samples.dtype.str}".encode(), digest_size=8)
    state.update(np.ascontiguousarray(samples).data)
    return state.hexdigest()


def contents_text(digests: Sequence[str], shards: Sequence[str]) -> str:
    """Returns the text of `CONTENTS`: the digest of each image that has one, with the name of the shard that holds it."""
    return "".join(f"{shard} {each}\n" for each, shard in zip(digests, shards, strict=True) if each)


def contents_of(tars: Iterable[str]) -> set[str]:
    """Returns the digests of the images in local tars, from the list beside them or else by decoding them.

    Tars without a list are left out, which is logged, once more than `MAX_DECODED` bytes would have to be decoded. Images
    that cannot be read are left out.
    """
    found: set[str] = set()
    left = MAX_DECODED
    unknown = []
    for tar in tars:
        listed = None if is_remote(tar) else _listed(Path(os.path.abspath(tar)))
        if listed is None and not is_remote(tar) and (size := os.path.getsize(tar)) <= left:
            left, listed = left - size, _decoded(tar, size, os.stat(tar).st_mtime_ns)
        if listed is None:
            unknown.append(tar)
        found |= {each for each in listed or () if each}
    if unknown:
        log.info("The images of %d shards are not compared with others, for example those of %s.", len(unknown), unknown[0])
    return found


def _listed(tar: Path) -> list[str] | None:
    path = tar.with_name(CONTENTS)
    return _read_list(path, path.stat().st_mtime_ns).get(tar.name) if path.is_file() else None


@lru_cache(maxsize=8)
def _read_list(path: Path, _time: int) -> dict[str, list[str]]:
    """Returns the digests by the name of their shard; the time of the file's last change makes the cache read it again."""
    lines = (line.rsplit(" ", 1) for line in path.read_text().splitlines())
    found: dict[str, list[str]] = {}
    for shard, digest in lines:
        found.setdefault(shard, []).append(digest)
    return found


@lru_cache(maxsize=256)  # a run compares its splits with one another
def _decoded(tar: str, _size: int, _time: int) -> list[str]:
    index = index_tar(tar, on_error="skip")
    found = []
    for i in range(len(index)):
        try:
            record = read_record(index, i)
            image = record.annotation["image"]
            found.append(content_digest(decode_samples(record.image_bytes, image["width"], image["height"], record.name)))
        except ValueError as error:
            log.debug("An image is not compared with others: %s", error)
    return found
