"""The masks that earlier rounds have collected: an image's masks are those of the last shard that holds it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from samtrain.data.shards import ShardIndex, index_tar, read_record
from samtrain.files import read_done


def collected_keys(shards: Sequence[Path]) -> set[str]:
    """Returns the keys of all images that have a mask."""
    indices = [index_tar(shard) for shard in shards]
    return {index.key(i) for index in indices for i in range(len(index))}


def annotated_keys(shards: Sequence[Path]) -> set[str]:
    """Returns the keys of all images that the rounds of these shards have annotated, also of those that got no mask."""
    folders = {shard.parent.parent / "annotations" for shard in shards}
    drawings = [each for folder in folders for each in _drawings(folder)]
    return {each["key"] for each in drawings if not (each["skipped"] or each.get("untouched"))} | collected_keys(shards)


def untouched_keys(folder: Path) -> set[str]:
    """Returns the keys of the images of a round that nobody had begun when it was closed; `folder` holds its drawings."""
    return {each["key"] for each in _drawings(folder) if each.get("untouched")}


def _drawings(folder: Path) -> list[dict[str, Any]]:
    return [read_done(path).result for path in sorted(folder.glob("*.json"))]


def collected_masks(shards: Sequence[Path], keys: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the annotations of these images by key; images without a mask are left out."""
    last: dict[str, tuple[ShardIndex, int]] = {}
    for shard in shards:
        index = index_tar(shard)
        last |= {key: (index, i) for i in range(len(index)) if (key := index.key(i)) in keys}
    return {key: read_record(*place).annotation["annotations"] for key, place in last.items()}
