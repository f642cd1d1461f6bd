"""The ground truth of input images that have one: a JSON beside an image, or in the same tar."""

from __future__ import annotations

from functools import lru_cache

from samtrain.data.shards import parse_annotation
from samtrain.data.tar_index import list_members, split_name
from samtrain.data_engine.automatic.inputs import InputImage
from samtrain.ops.rle import RLE, to_compressed


def truth_of(image: InputImage) -> list[RLE]:
    """The objects of an image; raises ValueError where there is no JSON, or it does not fit."""
    if image.path.suffix.lower() == ".tar":
        key = split_name(image.name.removeprefix(f"{image.path}, "))[0]
        place = _jsons(str(image.path)).get(key)
        if place is None:
            raise ValueError(f"{image.name}: the tar holds no JSON of it, set generate.truth=false")
        with open(image.path, "rb") as file:
            file.seek(place[0])
            data = file.read(place[1])
    else:
        beside = image.path.with_suffix(".json")
        if not beside.is_file():
            raise ValueError(f"{image.name}: there is no {beside.name} beside it, set generate.truth=false")
        data = beside.read_bytes()
    content = parse_annotation(data, image.name)
    size = content["image"]["height"], content["image"]["width"]
    return [to_compressed(each["segmentation"], size) for each in content["annotations"]]


@lru_cache(maxsize=8)
def _jsons(tar: str) -> dict[str, tuple[int, int]]:
    """Where the JSON of each key lies."""
    members, _ = list_members(tar)
    return {split_name(name)[0]: (offset, size) for name, offset, size in members if split_name(name)[1] == "json"}
