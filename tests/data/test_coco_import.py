"""task=prepare reads COCO as tools write it where the meaning is certain, and otherwise says which field is wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from samtrain.data.decode import decode_image
from samtrain.data.prepare.importers import PrepareConfig, prepare
from samtrain.data.shards import Record, index_tar, read_record

H, W = 24, 32
BOX = [1.0, 2.0, 7.0, 2.0, 7.0, 9.0, 1.0, 9.0]
Content = dict[str, Any]


def pixels_of(name: str) -> np.ndarray:
    return np.random.default_rng(crc32(name.encode())).integers(0, 256, (H, W, 3), dtype=np.uint8)


def write_images(folder: Path, *names: str) -> Content:
    """Writes images and returns COCO's JSON with one object in each."""
    content: Content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "blob"}]}
    for number, name in enumerate(names, start=1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(name)).save(folder / name, format="png")
        content["images"].append({"id": number, "file_name": name, "width": W, "height": H})
        content["annotations"].append({"id": 10 * number, "image_id": number, "category_id": 1, "segmentation": [BOX]})
    return content


def prepared(tmp_path: Path, content: Content, **settings: Any) -> Path:
    (tmp_path / "a.json").write_text(json.dumps(content))
    images, annotations = str(tmp_path / "images"), str(tmp_path / "a.json")
    return prepare(tmp_path / "out", PrepareConfig(root=images, annotations=annotations, **settings))


def records_by_source(folder: Path) -> dict[str, Record]:
    indexes = [index_tar(path) for path in sorted(folder.glob("*/*.tar"))]
    found = [read_record(index, i) for index in indexes for i in range(len(index))]
    return {record.annotation["image"]["source_name"]: record for record in found}


def each(kind: str, change: Callable[[Any], Any], key: str) -> Callable[[Content], None]:
    """Returns a function that changes one field of all images or annotations."""

    def apply(content: Content) -> None:
        for entry in content[kind]:
            entry[key] = change(entry[key])

    return apply


AS_TOOLS_WRITE_IT = {
    "float sizes": each("images", float, "width"),
    "text sizes": each("images", str, "height"),
    "text ids of images": each("images", str, "id"),
    "text ids in annotations": each("annotations", str, "image_id"),
    "float ids in annotations": each("annotations", float, "image_id"),
    "backslashes": each("images", lambda name: name.replace("/", "\\"), "file_name"),
    "upper case": each("images", str.upper, "file_name"),
    "a path of another computer": each("images", lambda name: f"D:\\data\\images\\{name}", "file_name"),
    "a deeper folder": each("images", lambda name: Path(name).name, "file_name"),
    "flat polygons": each("annotations", lambda polygons: polygons[0], "segmentation"),
}


@pytest.mark.parametrize("name", AS_TOOLS_WRITE_IT)
def test_what_is_certain_is_read(tmp_path: Path, name: str) -> None:
    content = write_images(tmp_path / "images", "cam0/p0.png", "cam0/p1.png", "cam1/q0.png")
    AS_TOOLS_WRITE_IT[name](content)
    records = records_by_source(prepared(tmp_path, content))
    assert sorted(records) == ["cam0/p0.png", "cam0/p1.png", "cam1/q0.png"]
    for number, source in enumerate(sorted(records), start=1):
        record = records[source]
        assert np.array_equal(decode_image(record.image_bytes, W, H, "p"), pixels_of(source))
        assert [each["id"] for each in record.annotation["annotations"]] == [10 * number]
        assert record.annotation["image"] | {"width": W, "height": H} == record.annotation["image"]


def test_no_image_receives_the_masks_of_another_folder(tmp_path: Path) -> None:
    content = write_images(tmp_path / "images", "day1/p0.png", "day1/p1.png")
    content["images"][0]["file_name"] = "day2/p0.png"
    folder = prepared(tmp_path, content)
    assert list(records_by_source(folder)) == ["day1/p1.png"]
    refused = json.loads((folder / "prepare.json").read_text())["refused"]["images"]
    (example,) = refused["no file for the image's file_name"]["examples"]
    assert example == "day2/p0.png: nothing fits day2/p0.png, the nearest is day1/p0.png"


def test_an_image_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    """A JSON of someone else could otherwise put any image of this computer into shards."""
    content = write_images(tmp_path / "images", "p0.png", "p1.png")
    write_images(tmp_path / "secret", "private.png")
    content["images"][0]["file_name"] = "../secret/private.png"
    content["images"][1]["file_name"] = str(tmp_path / "secret" / "private.png")
    with pytest.raises(ValueError, match="no file for the image's file_name: 2, for example"):
        prepared(tmp_path, content)


def test_a_huge_polygon_is_refused_with_its_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = write_images(tmp_path / "images", "p0.png", "p1.png")
    content["annotations"].append({"id": 77, "image_id": 1, "segmentation": [[0, 0, 1e12, 0, 1e12, 1e12, 0, 1e12]]})
    with caplog.at_level(logging.WARNING):
        assert len(records_by_source(prepared(tmp_path, content))) == 2
    assert "Refused masks: 1 (no valid RLE or polygon), for example p0.png: object 77 the outline reaches" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (each("annotations", lambda _: "x", "image_id"), "no annotation in .* image_id 'x', while images have ids such as 1"),
        (each("images", lambda _: 1, "id"), "two images with the id 1"),
        (each("images", lambda _: None, "id"), "image p0.png in .* has the id None"),
        (each("images", lambda _: 0, "width"), "width and height are no sizes: 2, for example p0.png: they are 0 and 24"),
        (each("annotations", lambda _: [[1, 2]], "segmentation"), "no usable mask: 2, for example p0.png: .*object 10"),
    ],
)
def test_what_is_uncertain_is_refused_by_name(tmp_path: Path, change: Callable, message: str) -> None:
    content = write_images(tmp_path / "images", "p0.png", "p1.png")
    change(content)
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, content)


def test_copies_of_an_image_are_in_one_split(tmp_path: Path) -> None:
    """Under another name, in another folder, and in another format."""
    names = [f"p{number}.png" for number in range(12)]
    content = write_images(tmp_path / "images", *names)
    for number, name in enumerate(names):
        copy = f"copy/{name}" if number % 2 else f"c{number}.bmp"
        (tmp_path / "images" / "copy").mkdir(exist_ok=True)
        Image.open(tmp_path / "images" / name).save(tmp_path / "images" / copy)
        content["images"].append({**content["images"][number], "id": 100 + number, "file_name": copy})
        content["annotations"].append({**content["annotations"][number], "id": 1000 + number, "image_id": 100 + number})
    folder = prepared(tmp_path, content, val=0.3, test=0.3)
    splits: dict[bytes, set[str]] = {}
    for record in records_by_source(folder).values():
        pixels = decode_image(record.image_bytes, W, H, "p").tobytes()
        splits.setdefault(pixels, set()).add(Path(record.path).parent.name)
    assert len(splits) == 12 and all(len(each) == 1 for each in splits.values())
    assert set.union(*splits.values()) == {"pool", "val", "test"}


def test_another_folder_name_holds_back_the_same_images(tmp_path: Path) -> None:
    def test_images(root: str) -> set[bytes]:
        (tmp_path / root).mkdir()
        content = write_images(tmp_path / root / "images", *(f"p{number}.png" for number in range(20)))
        if root == "other":
            for image in content["images"]:
                (tmp_path / root / "images" / "deep").mkdir(exist_ok=True)
                (tmp_path / root / "images" / image["file_name"]).rename(
                    tmp_path / root / "images" / "deep" / f"x{image['file_name']}"
                )
                image["file_name"] = f"x{image['file_name']}"
        records = records_by_source(prepared(tmp_path / root, content)).values()
        return {record.image_bytes for record in records if "/test/" in record.path}

    assert test_images("one") == test_images("other") != set()
