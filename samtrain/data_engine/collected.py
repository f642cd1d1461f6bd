"""The masks that earlier rounds have collected: an image's masks are those of the last shard that holds it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from samtrain.data.shards import ShardIndex, index_tar, read_record


def collected_keys(shards: Sequence[Path]) -> set[str]:
    """Returns the keys of all images that have a mask."""
    indices = [index_tar(shard) for shard in shards]
    return {index.key(i) for index in indices for i in range(len(index))}


def annotated_keys(shards: Sequence[Path]) -> set[str]:
    """Returns the keys of all images that the rounds of these shards have annotated, also of those that got no mask."""
    folders = {shard.parent.parent / "annotations" for shard in shards}
    files = [path for folder in folders for path in folder.glob("*.json")]
    drawings = [json.loads(path.read_bytes())["result"] for path in files]
    return {each["key"] for each in drawings if not each["skipped"]} | collected_keys(shards)


def collected_masks(shards: Sequence[Path], keys: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the annotations of these images by key; images without a mask are left out."""
    last: dict[str, tuple[ShardIndex, int]] = {}
    for shard in shards:
        index = index_tar(shard)
        last |= {key: (index, i) for i in range(len(index)) if (key := index.key(i)) in keys}
    return {key: read_record(*place).annotation["annotations"] for key, place in last.items()}
