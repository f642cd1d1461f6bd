"""The ground truth of input pictures that have one: a JSON beside a picture, or in the same tar."""

from __future__ import annotations

from functools import lru_cache

from samtrain.data.shards import parse_annotation
from samtrain.data.tar_index import list_members, split_name
from samtrain.data_engine.automatic.inputs import InputPicture
from samtrain.ops.rle import RLE, to_compressed


def truth_of(picture: InputPicture) -> list[RLE]:
    """The objects of a picture; raises ValueError where there is no JSON, or it does not fit."""
    if picture.path.suffix.lower() == ".tar":
        key = split_name(picture.name.removeprefix(f"{picture.path}, "))[0]
        place = _jsons(str(picture.path)).get(key)
        if place is None:
            raise ValueError(f"{picture.name}: the tar holds no JSON of it, set generator.truth=false")
        with open(picture.path, "rb") as file:
            file.seek(place[0])
            data = file.read(place[1])
    else:
        beside = picture.path.with_suffix(".json")
        if not beside.is_file():
            raise ValueError(f"{picture.name}: there is no {beside.name} beside it, set generator.truth=false")
        data = beside.read_bytes()
    content = parse_annotation(data, picture.name)
    size = content["image"]["height"], content["image"]["width"]
    return [to_compressed(each["segmentation"], size) for each in content["annotations"]]


@lru_cache(maxsize=8)
def _jsons(tar: str) -> dict[str, tuple[int, int]]:
    """Where the JSON of each key lies."""
    members, _ = list_members(tar)
    return {split_name(name)[0]: (offset, size) for name, offset, size in members if split_name(name)[1] == "json"}
