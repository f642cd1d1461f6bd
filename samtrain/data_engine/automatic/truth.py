"""Reads ground truth: of input images from the JSON beside each of them, and of whole shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

from samtrain.data.image_set import records
from samtrain.data.shards import Record, parse_annotation
from samtrain.data.tar_index import list_members, split_name
from samtrain.data_engine.automatic.inputs import InputImage
from samtrain.ops.rle import RLE, to_compressed


def truth_of(image: InputImage) -> list[RLE]:
    """Returns the objects of an input image; raises ValueError if there is no JSON for it, or the JSON does not fit."""
    content = parse_annotation(_json_of(image), image.name)
    size = content["image"]["height"], content["image"]["width"]
    return [to_compressed(each["segmentation"], size) for each in content["annotations"]]


def objects_by_name(urls: Sequence[str]) -> dict[str, list[RLE]]:
    """Returns the objects of each image of the shards, by its key and by the path it came from (`names_of`)."""
    found: dict[str, list[RLE]] = {}
    for record in records(urls):
        size = record.annotation["image"]["height"], record.annotation["image"]["width"]
        objects = [to_compressed(each["segmentation"], size) for each in record.annotation["annotations"]]
        for name in names_of(record):
            if name in found:
                raise ValueError(
                    f"audit.truth has two images with the name {name!r}, the second is {record.name}: rename one of them"
                )
            found[name] = objects
    return found


def names_of(record: Record) -> list[str]:
    """Returns the names of an image without extension: first the path of the file that it came from, then its key."""
    source = record.annotation["image"].get("source_name")
    names = [os.path.splitext(str(source))[0]] if source else []
    return list(dict.fromkeys([*names, record.key]))


def _json_of(image: InputImage) -> bytes:
    """Returns the JSON of an image, from the same tar or from the file beside it."""
    if image.path.suffix.lower() != ".tar":
        beside = image.path.with_suffix(".json")
        if not beside.is_file():
            raise ValueError(f"{image.name}: there is no {beside.name} beside it, set generate.truth=false")
        return beside.read_bytes()
    key = split_name(image.name.removeprefix(f"{image.path}, "))[0]
    place = _jsons(str(image.path)).get(key)
    if place is None:
        raise ValueError(f"{image.name}: the tar has no JSON for it, set generate.truth=false")
    offset, size = place
    with open(image.path, "rb") as file:
        file.seek(offset)
        return file.read(size)


@lru_cache(maxsize=8)
def _jsons(tar: str) -> dict[str, tuple[int, int]]:
    """Returns the offset and size of the JSON of each key in a tar."""
    members, _ = list_members(tar)
    return {split_name(name)[0]: (offset, size) for name, offset, size in members if split_name(name)[1] == "json"}
