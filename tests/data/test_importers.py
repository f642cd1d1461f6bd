"""task=prepare: every form gives the same masks, invalid records are refused and counted, and a kill changes nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import webdataset
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from samtrain.data.decode import decode_image
from samtrain.data.prepare import importers
from samtrain.data.prepare.formats import CocoInstances
from samtrain.data.prepare.importers import PrepareConfig, prepare
from samtrain.data.shards import Record, index_tar, read_record, safe_key
from samtrain.files import digest
from samtrain.ops.rle import decode_rle, encode_mask

H, W = 24, 32
ALL_IN_POOL = {"val": 0.0, "test": 0.0}


def make_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def masks(count: int = 3) -> list[np.ndarray]:
    """Returns rectangles that share no pixel."""
    found = np.zeros((count, H, W), bool)
    for i in range(count):
        found[i, 2 + i : 9 + i, 1 + 8 * i : 7 + 8 * i] = True
    return list(found)


def sa1b(objects: list[Any], size: tuple[int, int] | None = (H, W), name: str = "") -> dict[str, Any]:
    """Returns SA-1B's JSON with masks, or with the given segmentations."""
    image = {"image_id": 7, **({"height": size[0], "width": size[1]} if size else {}), "file_name": name}
    each = [
        {"id": i + 1, "segmentation": encode_mask(o) if isinstance(o, np.ndarray) else o} for i, o in enumerate(objects)
    ]
    return {"image": image, "annotations": each}


def write_pair(folder: Path, stem: str, content: Any = None, ext: str = "png", **save: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_image(crc32(os.fsencode(stem)))).save(folder / f"{stem}.{ext}", **save)
    text = content if isinstance(content, str) else json.dumps(content or sa1b(masks(), name=f"{stem}.{ext}"))
    (folder / f"{stem}.json").write_text(text)


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "prepare.json").read_text())


def records_of(folder: Path, split: str = "*") -> dict[str, Record]:
    found = {}
    for path in sorted(folder.glob(f"{split}/*.tar")):
        index = index_tar(path)
        found |= {index.key(i): read_record(index, i) for i in range(len(index))}
    return found


def masks_of(record: Record) -> list[np.ndarray]:
    return [decode_rle(each["segmentation"], (H, W)) for each in record.annotation["annotations"]]


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): digest(path) for path in folder.rglob("*") if path.suffix in (".tar", ".json")
    }


def assert_holds_masks(record: Record, want: list[np.ndarray]) -> None:
    assert np.array_equal(masks_of(record), want)
    for each, mask in zip(record.annotation["annotations"], want, strict=True):
        rows, columns = np.nonzero(mask)
        assert each["area"] == mask.sum()
        assert each["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


# ---- the four forms


def test_sa1b_folder_keeps_bytes_and_masks(tmp_path: Path) -> None:
    source = tmp_path / "set"
    for number in range(6):
        write_pair(source / "images", f"p {number}.x", ext="jpg" if number % 2 else "png")
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(source), val=0.2, test=0.2))
    records = records_of(folder)
    assert sorted(records) == [f"p_{number}_x" for number in range(6)]
    for number, record in enumerate(records[key] for key in sorted(records)):
        assert_holds_masks(record, masks())
        name = record.annotation["image"]["source_name"]
        assert record.image_bytes == (source / name).read_bytes()
        assert record.annotation["image"]["file_name"] == f"p_{number}_x.{'jpg' if number % 2 else 'png'}"
    counts = {split: content["images"] for split, content in report_of(folder)["splits"].items()}
    assert counts == {split: len(records_of(folder, split)) for split in ("pool", "val", "test")}
    assert min(counts.values()) >= 1


def coco(images: list[dict], annotations: list[dict]) -> dict[str, Any]:
    return {"images": images, "annotations": annotations, "categories": []}


def test_frequencies_of_lvis_are_kept(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(make_image()).save(tmp_path / "images" / "000.jpg")
    first, second, third = masks()
    objects = [(first, 5), (second, 6), (third, 7)]
    annotations = [
        {"id": i, "image_id": 3, "segmentation": encode_mask(m), "category_id": c} for i, (m, c) in enumerate(objects)
    ]
    content = coco([{"id": 3, "file_name": "000.jpg", "width": W, "height": H}], annotations)
    content["categories"] = [{"id": 5, "frequency": "r"}, {"id": 6, "frequency": "f"}, {"id": 7}]
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    source = CocoInstances(tmp_path / "images", tmp_path / "lvis.json")
    (entry,) = source.entries()
    assert [each.get("frequency") for each in source.read(entry).objects] == ["r", "f", None]


@pytest.mark.parametrize("naming", ["file_name", "coco_url"])
def test_coco_and_lvis(tmp_path: Path, naming: str) -> None:
    source = tmp_path / "train2017"
    source.mkdir()
    Image.fromarray(make_image()).save(source / "000.jpg")
    first, second, third = masks()
    runs = np.flatnonzero(np.diff(np.r_[False, second.T.ravel()])) + 0
    counts = np.diff(np.r_[0, runs, H * W]).tolist()  # uncompressed RLE runs down the columns
    objects = [
        {"segmentation": [[1, 2, 7, 2, 7, 9, 1, 9]], "category_id": 5},
        {"segmentation": {"size": [H, W], "counts": counts}},
        {"segmentation": encode_mask(third)},
        {"segmentation": encode_mask(third), "iscrowd": 1},
        {"segmentation": [[1, 2, 7, 2]]},
        {"segmentation": []},
    ]
    annotations = [{"id": 10 + i, "image_id": 3, **each} for i, each in enumerate(objects)]
    name = {"file_name": "000.jpg"} if naming == "file_name" else {"coco_url": "http://x.org/train2017/000.jpg"}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco([{"id": 3, "width": W, "height": H, **name}], annotations)))
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(source), annotations=str(path), **ALL_IN_POOL))
    record = records_of(folder)["000"]
    assert_holds_masks(record, [first, second, third])
    assert record.annotation["annotations"][0]["category_id"] == 5 and record.annotation["image"]["image_id"] == 3
    refused = {reason: content["count"] for reason, content in report_of(folder)["refused"]["masks"].items()}
    assert refused == {"no valid RLE or polygon": 2}
    (crowd,) = record.annotation["evaluation_only"]
    assert crowd["iscrowd"] == 1 and np.array_equal(decode_rle(crowd["segmentation"]), third)
    assert report_of(folder)["splits"]["pool"]["crowds"] == 1


def label_map(dtype: str) -> np.ndarray:
    values = (1, 7, 300 if dtype != "uint8" else 200)  # with gaps
    return sum(mask * np.asarray(value, dtype) for value, mask in zip(values, masks(), strict=True)).astype(dtype)


@pytest.mark.parametrize(("ext", "dtype"), [("png", "uint8"), ("png", "uint16"), ("tif", "uint16"), ("npy", "int64")])
def test_label_maps(tmp_path: Path, ext: str, dtype: str) -> None:
    source = tmp_path / "set"
    (source / "images" / "a").mkdir(parents=True)
    (source / "labels" / "a").mkdir(parents=True)
    Image.fromarray(make_image()).save(source / "images" / "a" / "p.jpg")
    path = source / "labels" / "a" / f"p.{ext}"
    np.save(path, label_map(dtype)) if ext == "npy" else Image.fromarray(label_map(dtype)).save(path)
    config = PrepareConfig(root=str(source), form="label_maps", masks="labels", **ALL_IN_POOL)
    folder = prepare(tmp_path / "out", config)
    (record,) = records_of(folder).values()
    assert_holds_masks(record, masks())
    assert report_of(folder)["refused"]["images"] == {}  # the maps themselves were not taken for images


@pytest.mark.parametrize("layout", ["folder", "numbered", "glob beside", "glob above"])
def test_binary_masks(tmp_path: Path, layout: str) -> None:
    source = tmp_path / "set"
    photos = {"folder": "images/", "numbered": "", "glob beside": "", "glob above": "p/images/"}[layout]
    places = {
        "folder": "m/p/x{}.png",
        "numbered": "m/p_{}.png",
        "glob beside": "p-obj{}.png",
        "glob above": "p/masks/{}.png",
    }
    option = {"glob beside": "{folder}/{stem}-obj*.png", "glob above": "{folder}/../masks/*.png"}.get(layout, "m")
    (source / photos).mkdir(parents=True)
    Image.fromarray(make_image()).save(source / photos / "p.bmp")
    many = [np.roll(masks()[0], shift, axis=1) for shift in range(12)]  # 10 comes after 9
    for number, mask in enumerate(many):
        path = source / places[layout].format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * (255 if number % 2 else 1)).save(path)
    folder = prepare(
        tmp_path / "out", PrepareConfig(root=str(source), form="binary_masks", masks=option, **ALL_IN_POOL)
    )
    (record,) = records_of(folder).values()
    assert_holds_masks(record, many)
    image = decode_image(record.image_bytes, W, H, "p")
    assert record.ext == "png" and np.array_equal(image, make_image())


# ---- images


def test_16_bit_tiff_keeps_its_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (H, W)).astype(np.uint16)
    write_pair(tmp_path / "set", "p")
    (tmp_path / "set" / "p.png").unlink()
    Image.fromarray(values).save(tmp_path / "set" / "p.tif")
    (record,) = records_of(prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set")))).values()
    assert record.ext == "png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(record.image_bytes))), values)


def test_16_bit_colours_are_stretched_before_they_are_stored(tmp_path: Path, making: Any) -> None:
    """PIL reads only the high bytes of such a TIFF, which are all 0 in a dark image, and cannot write it as PNG."""
    values = np.random.default_rng(0).integers(0, 250, (H, W, 3)).astype(np.uint16)
    write_pair(tmp_path / "set", "p")
    (tmp_path / "set" / "p.png").unlink()
    (tmp_path / "set" / "p.tif").write_bytes(making.encode_16_bit_tiff(values, "<"))
    (record,) = records_of(prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set")))).values()
    image = decode_image(record.image_bytes, W, H, "p").astype(float)
    assert record.ext == "png" and np.abs(image - values * 255 / 249).max() < 4


@pytest.mark.parametrize("ext", ["jpg", "tif"])
@pytest.mark.parametrize("given", ["shown", "stored", "none"])
@pytest.mark.parametrize(("orientation", "turns"), [(6, -1), (8, 1)])
def test_exif_rotation_follows_the_json(tmp_path: Path, ext: str, given: str, orientation: int, turns: int) -> None:
    """An image stored as W x H is shown as H x W. Without a size in the JSON it is stored as shown."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = [np.rot90(mask, turns) for mask in masks()]
    content = {"shown": sa1b(shown, (W, H)), "stored": sa1b(masks()), "none": sa1b(shown, None)}[given]
    write_pair(
        tmp_path / "set", "p", content, ext, exif=exif, **({"quality": 100, "subsampling": 0} if ext == "jpg" else {})
    )
    (record,) = records_of(prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set")))).values()
    size = (H, W) if given == "stored" else (W, H)
    assert (record.annotation["image"]["height"], record.annotation["image"]["width"]) == size
    image = decode_image(record.image_bytes, size[1], size[0], "p").astype(int)
    want = make_image(crc32(b"p")) if given == "stored" else np.rot90(make_image(crc32(b"p")), turns)
    assert np.abs(image - want).max() <= (4 if ext == "jpg" else 0)
    plain = np.asarray(Image.open(io.BytesIO(record.image_bytes))).astype(int)
    assert np.array_equal(plain, image)  # readers that do not look at EXIF see the same
    assert record.annotation["annotations"][0]["segmentation"]["size"] == list(size)


@pytest.mark.parametrize("ext", ["jpg", "png"])
@pytest.mark.parametrize("given", ["size", "none"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [H, W])
def test_every_reader_sees_the_image_that_the_masks_fit(
    tmp_path: Path, ext: str, given: str, orientation: int, side: int
) -> None:
    """Mirrored, upside down or square: the sides do not tell how an image is turned, and what is stored is not turned again."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.asarray(Image.fromarray(make_image(1)).resize((W, side)))
    buffer = io.BytesIO()
    quality = {"quality": 100, "subsampling": 0} if ext == "jpg" else {}
    Image.fromarray(stored).save(buffer, {"jpg": "jpeg"}.get(ext, ext), exif=exif, **quality)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(buffer)).convert("RGB"))
    mask = np.zeros(shown.shape[:2], dtype=bool)
    mask[1:5, 2:9] = True
    write_pair(tmp_path / "set", "p", sa1b([mask], shown.shape[:2] if given == "size" else None), ext)
    (tmp_path / "set" / f"p.{ext}").write_bytes(buffer.getvalue())
    (record,) = records_of(prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set")))).values()
    kept = Image.open(io.BytesIO(record.image_bytes))
    assert kept.getexif().get(0x0112, 1) == 1
    for seen in (kept, ImageOps.exif_transpose(kept)):
        assert np.array_equal(np.asarray(seen.convert("RGB")), shown)
    assert record.annotation["annotations"][0]["segmentation"]["size"] == list(shown.shape[:2])


def test_equal_names_get_different_keys(tmp_path: Path) -> None:
    for name in ("a/p", "a_p", "a__p", "a/p 1", "a/p_1"):
        write_pair((tmp_path / "set" / name).parent, Path(name).name)
    records = records_of(prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"))))
    assert len({record.annotation["image"]["source_name"] for record in records.values()}) == len(records) == 5


# ---- refusals


def broken(name: str, folder: Path) -> None:
    """Writes one invalid pair called `bad`."""
    good = sa1b(masks())
    contents = {
        "the JSON cannot be parsed": '{"image": ',
        "the JSON is not in SA-1B's form": "[1, 2]",
        "the image does not have its JSON's size": sa1b(masks(), (H + 1, W)),
        "no usable mask": sa1b([np.zeros((H, W), bool)]),
    }
    write_pair(folder, "bad", contents.get(name, good))
    if name == "the image cannot be read":
        (folder / "bad.png").write_bytes((folder / "bad.png").read_bytes()[:100])
    if name == "the image is missing":
        (folder / "bad.png").unlink()
    if name == "no JSON beside the image":
        (folder / "bad.json").unlink()
    if name == "the image is a stack":
        (folder / "bad.png").unlink()
        Image.fromarray(make_image()).save(folder / "bad.tif", save_all=True, append_images=[Image.fromarray(make_image(1))])


IMAGE_REASONS = [
    "the JSON cannot be parsed", "the JSON is not in SA-1B's form", "the image does not have its JSON's size", "no usable mask",
    "the image cannot be read", "the image is missing", "no JSON beside the image", "the image is a stack",
]  # fmt: skip


@pytest.mark.parametrize("reason", IMAGE_REASONS)
def test_an_invalid_image_is_refused_and_counted(tmp_path: Path, reason: str) -> None:
    write_pair(tmp_path / "set", "good")
    broken(reason, tmp_path / "set")
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set")))
    assert list(records_of(folder)) == ["good"]
    refused = report_of(folder)["refused"]["images"]
    assert list(refused) == [reason] and refused[reason]["count"] == 1
    assert refused[reason]["examples"][0].startswith("bad.")
    with pytest.raises(ValueError, match=f"bad.*{reason}.*strict"):
        prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"), strict=True))


BAD_MASKS = {
    "empty mask": [np.zeros((H, W), bool)],
    "RLE of the wrong size": [np.ones((H + 1, W), bool)],
    "the same mask twice": [masks()[0]],
    "no valid RLE or polygon": [
        {"size": [H, W], "counts": "!!"},
        {"size": [H, W], "counts": [5, 5]},
        {"size": [H, W], "counts": [-5, 5 + H * W]},
        {"size": None, "counts": "04"},
        {"size": [H, W]},
        {"size": [H, W], "counts": encode_mask(masks()[0])["counts"][:-1]},
        [[0, 0, 5, 5, 9, float("nan")]],
        [["a"] * 6],
        "text",
        None,
    ],
}


@pytest.mark.parametrize(("reason", "bad"), [(reason, bad) for reason, several in BAD_MASKS.items() for bad in several])
def test_an_invalid_mask_is_refused_and_the_others_stay(tmp_path: Path, reason: str, bad: Any) -> None:
    write_pair(tmp_path / "set", "p", sa1b([*masks(), bad]))
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set")))
    assert_holds_masks(records_of(folder)["p"], masks())
    assert {key: content["count"] for key, content in report_of(folder)["refused"]["masks"].items()} == {reason: 1}


def test_formats_that_are_not_read_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pair(tmp_path / "set", "good")
    write_pair(tmp_path / "set", "phone")
    (tmp_path / "set" / "phone.png").rename(tmp_path / "set" / "phone.heic")
    refused = report_of(prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"))))["refused"]["images"]
    assert refused == {
        "the image's format is not read": {"count": 1, "examples": ["phone.json: phone.heic: save it as PNG or JPEG"]}
    }
    assert "that are not read: 1 .heic" in caplog.text


def test_what_is_noticed_about_mask_files_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(make_image()).save(tmp_path / name)
        Image.fromarray(sum(masks()).astype(np.uint8) * 255).save(tmp_path / "m" / name)
    config = PrepareConfig(root=str(tmp_path), form="label_maps", masks="m", **ALL_IN_POOL)
    noticed = report_of(prepare(tmp_path.with_name("out"), config))["noticed"]
    assert {reason: each["count"] for reason, each in noticed.items()} == {"one value covers several separate regions": 2}
    assert "Noticed 2 times: one value covers" in caplog.text and "data.components=true" in caplog.text
    split = prepare(tmp_path.with_name("out"), replace(config, components=True))
    assert_holds_masks(records_of(split)["a"], masks())


@pytest.mark.parametrize("content", [b"P5\n\xfb5 5\n255\n", b"II*\0\x08\0\0\0\0\0\0\0\0\0"])
def test_an_image_that_raises_in_the_reader_is_refused(tmp_path: Path, content: bytes) -> None:
    """PIL raises ValueError and TypeError for these, which must not end the run."""
    write_pair(tmp_path / "set", "good")
    write_pair(tmp_path / "set", "bad")
    (tmp_path / "set" / "bad.png").unlink()
    (tmp_path / "set" / "bad.tif").write_bytes(content)
    refused = report_of(prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"))))["refused"]["images"]
    assert {reason: each["count"] for reason, each in refused.items()} == {"the image cannot be read": 1}


def test_label_maps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "set"
    (source / "m").mkdir(parents=True)
    arrays = {
        "fractions": np.full((H, W), 0.5, np.float32),
        "channels": make_image(),
        "size": np.ones((H, W + 1), np.int32),
        "good": label_map("uint8"),
        "alone": None,
    }
    for name, array in arrays.items():
        Image.fromarray(make_image()).save(source / f"{name}.png")
        if array is not None:
            np.save(source / "m" / f"{name}.npy", array)
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(source), form="label_maps", masks="m"))
    assert list(records_of(folder)) == ["good"]
    assert set(report_of(folder)["refused"]["images"]) == {
        "the mask file holds fractions",
        "the mask file has several channels",
        "the image does not have its mask file's size",
        "not exactly one label map",
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"form": "voc"}, "data.form.*choose one"),
        ({"root": "nowhere"}, "data.root.*not a folder"),
        ({"val": 0.6, "test": 0.4}, "left to train on"),
        ({"form": "label_maps"}, "data.masks"),
        ({"form": "label_maps", "masks": "nowhere"}, "nowhere"),
        ({"masks": "masks"}, "data.masks is 'masks' and data.form is auto.*data.form=label_maps .*data.form=binary_masks"),
        ({"form": "coco", "masks": "masks"}, "data.form is coco, which reads no mask files"),
        ({"form": "binary_masks", "masks": "m", "background": 1}, "data.background=null"),
        ({"form": "binary_masks", "masks": "m", "ignore_values": [255]}, "data.ignore_values=null"),
        ({"form": "label_maps", "masks": "m", "ignore_values": [1.5]}, "data.ignore_values.*whole numbers"),
        ({"form": "label_maps", "masks": "m", "background": [0, 1]}, "data.background.*whole numbers"),
        ({"form": "label_maps", "masks": "m", "ignore_values": 255}, "data.ignore_values is 255: give a list"),
        ({"form": "sa1b", "components": True}, "data.components=false"),
        ({"form": "coco", "annotations": "no.json"}, "data.annotations"),
        ({"annotations": ["a.json", "b.json"]}, "data.annotations names 2 files.*merge the files"),
        ({}, "no JSON beside"),
        ({"form": "sa1b"}, "holds no images"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, changed: dict, message: str) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "out", PrepareConfig(**{"root": str(tmp_path / "set"), **changed}))


def test_shards_are_not_written_into_their_own_input(tmp_path: Path) -> None:
    write_pair(tmp_path, "p")
    with pytest.raises(ValueError, match="data_dir is .*inside of data.root"):
        prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path)))


def test_nothing_usable_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    broken("the JSON cannot be parsed", tmp_path / "set")
    with pytest.raises(ValueError, match="the JSON cannot be parsed: 1"):
        prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set")))


# ---- once, and through a kill


def many(tmp_path: Path) -> PrepareConfig:
    """Writes forty images of ten scenes, some of them invalid."""
    for number in range(40):
        write_pair(tmp_path / "set", f"s{number % 10}_{number}", "{" if number % 9 == 4 else None)
    return PrepareConfig(root=str(tmp_path / "set"), group_by=r"^s\d", max_count=4)


def test_a_group_is_in_one_split(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "out", many(tmp_path))
    groups = [{key.split("_")[0] for key in records_of(folder, split)} for split in ("pool", "val", "test")]
    assert all(groups) and sum(map(len, groups)) == len(set().union(*groups)) == 10


def test_images_without_a_group_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "set", "a")
    write_pair(tmp_path / "set", "b")
    (tmp_path / "set" / "images.csv").write_text("file_name,slide\na.png,1\n")
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"), group_by="images.csv:slide"))
    assert list(records_of(folder)) == ["a"]
    assert report_of(folder)["refused"]["images"]["no group"]["count"] == 1


def test_the_same_call_does_nothing_and_other_input_makes_another_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = many(tmp_path)
    folder = prepare(tmp_path / "out", config)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.chdir(tmp_path / "set")
    assert prepare(tmp_path / "out", PrepareConfig(root="../set", group_by=r"^s\d", max_count=4)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    write_pair(tmp_path / "set", "s0_0", sa1b(masks(2)))
    assert prepare(tmp_path / "out", config) != folder


def test_a_set_that_lost_a_shard_is_refused(tmp_path: Path) -> None:
    config = many(tmp_path)
    folder = prepare(tmp_path / "out", config)
    (folder / "test" / "test_000000.tar").unlink()
    with pytest.raises(ValueError, match=r"test_000000.tar is gone \(1 of \d+ shards\): restore it, or delete"):
        prepare(tmp_path / "out", config)


def test_names_that_are_not_utf_8_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An archive from another system may leave names that are not UTF-8; the log shows them in escapes."""
    for name in (b"\xe9t\xe9", b"\xe8t\xe8"):
        write_pair(tmp_path / "set", os.fsdecode(name))
    records = records_of(prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"))))
    assert len(records) == 2 and all(key == safe_key(key) for key in records)
    assert caplog.text.encode("utf-8"), "a log file could not hold the names as they are"


def killed_after(calls: int, function: str, root: Path, config: PrepareConfig) -> int:
    """Runs prepare in a child that kills itself at the n-th call of a step; returns the signal that ended it."""
    child = os.fork()
    if child == 0:
        step, left = getattr(importers, function), [calls]

        def counted(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **kwargs)

        setattr(importers, function, counted)
        prepare(root, config)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_step_changes_no_byte(tmp_path: Path) -> None:
    config = many(tmp_path)
    whole = prepare(tmp_path / "whole", config)
    kills = [("check_record", 3), ("check_record", 2), ("write_text", 1), ("image_bytes", 6), ("image_bytes", 9)]
    for function, calls in [*kills, ("digest", 2)]:
        assert killed_after(calls, function, tmp_path / "out", config) == signal.SIGKILL
        assert not list((tmp_path / "out").glob("*/prepare.json"))  # an incomplete set is not taken for complete
    folder = prepare(tmp_path / "out", config)
    assert folder.name == whole.name and bytes_of(folder) == bytes_of(whole)
    assert not list((tmp_path / "out").glob("*.partial")) and not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("room", [0, 1, 2, 4, 9])
def test_a_full_disk_is_explained_and_the_next_call_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """The file that does not fit may be a file of checked records, a shard, or the manifest."""
    config, left, fsync = many(tmp_path), [room], os.fsync
    whole = prepare(tmp_path / "whole", config)

    def until_full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left.*free some disk space.*it resumes"):
        patch.setattr(os, "fsync", until_full)
        prepare(tmp_path / "out", config)
    assert not list((tmp_path / "out").glob("*/prepare.json"))
    assert not list((tmp_path / "out").rglob("*.tar.partial"))
    assert bytes_of(prepare(tmp_path / "out", config)) == bytes_of(whole)


# ---- other readers


def test_metas_reader_and_webdataset_read_the_shards(tmp_path: Path) -> None:
    """The steps of SAM 2's SA-1B loader: files <name>.jpg and <name>.json of one folder, areas, RLE into pycocotools."""
    for number in range(3):
        write_pair(tmp_path / "set", f"p.{number}", ext="jpg")
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"), **ALL_IN_POOL))
    (path,) = folder.glob("pool/*.tar")
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "extracted", filter="data")
    names = [name.split(".")[0] for name in os.listdir(tmp_path / "extracted") if name.endswith(".jpg")]
    assert len(names) == 3
    for name in names:
        content = json.loads((tmp_path / "extracted" / f"{name}.json").read_text())
        with Image.open(tmp_path / "extracted" / f"{name}.jpg") as image:
            pixels = image.size[0] * image.size[1]
            about = {"width": image.size[0], "height": image.size[1], "file_name": f"{name}.jpg"}
        assert content["image"].items() >= about.items() and isinstance(content["image"]["image_id"], int)
        kept = [each for each in content["annotations"] if each["area"] > 0 and each["area"] / pixels < 0.9]
        found = [coco_mask.decode(each["segmentation"]).astype(bool) for each in kept]
        assert np.array_equal(found, masks())
        for each in kept:
            assert isinstance(each["id"], int) and isinstance(each["area"], int)
            assert len(each["bbox"]) == 4 and each["segmentation"]["size"] == [H, W]

    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8"))
    assert sorted(sample["__key__"] for sample in samples) == sorted(names)
    assert all(sample["jpg"].shape == (H, W, 3) and len(sample["json"]["annotations"]) == 3 for sample in samples)


# ---- real images


def test_nuclei_by_group(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "dsb2018-cc0"
    folder = prepare(tmp_path, PrepareConfig(root=str(source), group_by="images.csv:group"))
    report = report_of(folder)
    assert report["refused"] == {"images": {}, "masks": {}}
    splits = report["splits"]
    assert sum(split["images"] for split in splits.values()) == len(list(source.glob("images/*.json")))
    assert 0.1 < splits["test"]["images"] / 106 < 0.2
    record = next(iter(records_of(folder, "test").values()))
    original = json.loads((source / "images" / f"{record.key}.json").read_text())
    assert record.annotation["annotations"] == original["annotations"]


# ---- what only COCO and LVIS have


def coco_set(folder: Path, objects: dict[int, list[dict]], **fields: Any) -> dict[str, Any]:
    """Writes images with the ids of `objects` and returns arguments of PrepareConfig for a JSON of these objects."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for image_id, several in objects.items():
        Image.fromarray(make_image(image_id)).save(folder / "images" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": W, "height": H, **fields})
        annotations += [{"id": len(annotations) + 1 + n, "image_id": image_id, **each} for n, each in enumerate(several)]
    categories = [{"id": 1, "name": "cell", "frequency": "r"}, {"id": 2, "name": "nucleus"}, {"id": 3, "name": "dust"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return {"root": str(folder / "images"), "annotations": str(folder / "a.json"), **ALL_IN_POOL}


def prepared(tmp_path: Path, **config: Any) -> tuple[dict[str, Record], dict[str, Any]]:
    folder = prepare(tmp_path / "out", PrepareConfig(**config))
    return records_of(folder), report_of(folder)


def mask_of(place: int, category: int, **more: Any) -> dict[str, Any]:
    return {"segmentation": encode_mask(masks()[place]), "category_id": category, **more}


def test_categories_crowds_and_lvis_lists_reach_the_shards(tmp_path: Path) -> None:
    objects = {4: [mask_of(0, 1, area=41.5), mask_of(0, 2), mask_of(0, 2), mask_of(1, 2, iscrowd=1)]}
    lists = {"neg_category_ids": [3], "not_exhaustive_category_ids": [1]}
    records, report = prepared(tmp_path, **coco_set(tmp_path / "set", objects, **lists))
    annotation = records["4"].annotation
    named = [(each["category_name"], each.get("frequency")) for each in annotation["annotations"]]
    assert named == [("cell", "r"), ("nucleus", None)]  # one mask in two categories is two objects
    assert annotation["annotations"][0]["source_area"] == 41.5 and annotation["image"].items() >= lists.items()
    twice, crowd = annotation["evaluation_only"]
    assert "iscrowd" not in twice and crowd["iscrowd"] == 1 and crowd["category_id"] == 2
    assert report["refused"]["masks"]["the same mask twice"]["count"] == 1 and report["splits"]["pool"]["crowds"] == 1


def test_only_the_named_categories_are_kept(tmp_path: Path) -> None:
    config = coco_set(tmp_path / "set", {1: [mask_of(0, 1), mask_of(1, 2)], 2: [mask_of(0, 2)], 3: [mask_of(0, 3)]})
    records, report = prepared(tmp_path, **config, categories=["cell", "dust"])
    names = {key: [each["category_name"] for each in r.annotation["annotations"]] for key, r in records.items()}
    assert names == {"1": ["cell"], "3": ["dust"]} and report["refused"]["images"]["no objects"]["count"] == 1
    with pytest.raises(ValueError, match="data.categories holds cells, which .* choose from cell, nucleus, dust"):
        prepare(tmp_path / "out", PrepareConfig(**config, categories=["cells"]))
    with pytest.raises(ValueError, match="only data.form=coco has categories"):
        PrepareConfig(root=str(tmp_path), categories=["cell"])


@pytest.mark.parametrize("written", [1, True, "1", 1.0])
def test_crowds_become_objects_on_request(tmp_path: Path, written: Any) -> None:
    config = coco_set(tmp_path / "set", {1: [mask_of(0, 1, iscrowd=written)], 2: [mask_of(1, 1, iscrowd=written)]})
    with pytest.raises(ValueError, match="only crowd regions: 2.*data.crowds=objects"):
        prepare(tmp_path / "out", PrepareConfig(**config))
    records, _ = prepared(tmp_path, **config, crowds="objects")
    assert_holds_masks(records["1"], masks()[:1])
    assert "iscrowd" not in records["1"].annotation["annotations"][0]


@pytest.mark.parametrize("written", [0, False, "0", None, 0.0])
def test_an_object_that_is_no_crowd_whatever_its_type(tmp_path: Path, written: Any) -> None:
    records, _ = prepared(tmp_path, **coco_set(tmp_path / "set", {1: [mask_of(0, 1, iscrowd=written)]}))
    assert_holds_masks(records["1"], masks()[:1])


def test_a_crowd_flag_of_another_kind_is_refused(tmp_path: Path) -> None:
    config = coco_set(tmp_path / "set", {1: [mask_of(0, 1), mask_of(1, 1, iscrowd="many")]})
    _, report = prepared(tmp_path, **config)
    assert report["refused"]["masks"]["iscrowd is neither 0 nor 1"]["count"] == 1


@pytest.mark.parametrize("written", [[1], {"id": 1}])
def test_a_category_of_another_kind_is_refused(tmp_path: Path, written: Any) -> None:
    config = coco_set(tmp_path / "set", {1: [mask_of(0, 1), mask_of(1, 1) | {"category_id": written}]})
    _, report = prepared(tmp_path, **config)
    assert report["refused"]["masks"]["category_id is neither a number nor a text"]["count"] == 1


@pytest.mark.parametrize("written", [None, 5, [3]])
def test_a_list_for_evaluation_of_another_kind_does_not_end_the_run(tmp_path: Path, written: Any) -> None:
    write_pair(tmp_path / "set", "a", sa1b(masks()) | {"evaluation_only": written})
    write_pair(tmp_path / "set", "b")
    records, report = prepared(tmp_path, root=str(tmp_path / "set"))
    assert len(records) + len(report["refused"]["images"]) == 2 and "b" in records


def test_images_without_objects_are_kept_on_request(tmp_path: Path) -> None:
    """An image in which every mask is broken is not one without objects."""
    broken = {"segmentation": [[0, 0, 1, 1]], "category_id": 1}
    config = coco_set(tmp_path / "set", {1: [mask_of(0, 1)], 2: [], 3: [mask_of(0, 1, iscrowd=1)], 4: [broken]})
    records, report = prepared(tmp_path, **config)
    assert list(records) == ["1"] and report["splits"]["pool"]["images_without_objects"] == 0
    reasons = {reason: each["count"] for reason, each in report["refused"]["images"].items()}
    assert reasons == {"no objects": 1, "only crowd regions": 1, "no usable mask": 1}
    records, report = prepared(tmp_path, **config, empty_images=True)
    assert list(records) == ["1", "2", "3"] and report["splits"]["pool"]["images_without_objects"] == 2
    assert records["2"].annotation["annotations"] == [] and len(records["3"].annotation["evaluation_only"]) == 1


@pytest.mark.parametrize("form", ["sa1b", "label_maps", "binary_masks"])
def test_images_without_objects_in_the_other_forms(tmp_path: Path, form: str) -> None:
    source = tmp_path / "set"
    write_pair(source, "full")
    write_pair(source, "none", json.dumps(sa1b([])))
    (source / "m").mkdir()
    for name, labels in (("full", label_map("uint8")), ("none", np.zeros((H, W), np.uint8))):
        if form == "label_maps" or (form == "binary_masks" and name == "full"):
            Image.fromarray(labels).save(source / "m" / (f"{name}.png" if form == "label_maps" else f"{name}_1.png"))
    config = {"root": str(source), "form": form, "masks": None if form == "sa1b" else "m", **ALL_IN_POOL}
    assert list(prepared(tmp_path, **config)[0]) == ["full"]
    assert sorted(prepared(tmp_path, **config, empty_images=True)[0]) == ["full", "none"]


def test_a_black_mask_says_that_an_image_has_no_objects(tmp_path: Path) -> None:
    """One mask per image, beside a folder of images, is a layout of binary masks as well."""
    for stem, mask in (("full", masks()[0]), ("empty", np.zeros((H, W), bool))):
        (tmp_path / "set" / "m").mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image(len(stem))).save(tmp_path / "set" / f"{stem}.png")
        Image.fromarray(mask).save(tmp_path / "set" / "m" / f"{stem}.png")
    given = {"root": str(tmp_path / "set"), "form": "binary_masks", "masks": "m", **ALL_IN_POOL}
    found, _ = prepared(tmp_path, empty_images=True, **given)
    assert {key: len(record.annotation["annotations"]) for key, record in found.items()} == {"full": 1, "empty": 0}


def test_images_of_one_value_join_no_groups(tmp_path: Path) -> None:
    """An empty slice in each patient's folder does not make one group of all patients."""
    for patient in range(6):
        for stem in ("own", "blank"):
            image = np.zeros((H, W, 3), np.uint8) if stem == "blank" else make_image(patient)
            folder = tmp_path / "set"
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"p{patient}_{stem}.png")
            (folder / f"p{patient}_{stem}.json").write_text(json.dumps(sa1b(masks())))
    config = PrepareConfig(root=str(tmp_path / "set"), group_by=r"^(p\d+)_", val=0.3, test=0.3)
    splits = report_of(prepare(tmp_path / "out", config))["splits"]
    assert [splits[name]["groups"] for name in ("pool", "val", "test")] == [2, 2, 2]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([2.0, 1.0, 3], [2, 1, 3]),  # as pandas writes them
        ([None, 1, 2], [3, 1, 2]),  # the first image's number is another one's id
        (["1", "2", 1], ["1", "2", 3]),  # 1 and "1" are one id
        ([None, None, None], [1, 2, 3]),
    ],
)
def test_ids_of_images(tmp_path: Path, ids: list[Any], expected: list[Any]) -> None:
    for number, own in enumerate(ids):
        content = sa1b(masks())
        content["image"] = {"image_id": own, "width": W, "height": H} if own is not None else {"width": W, "height": H}
        write_pair(tmp_path / "set", f"{number}", content)
    records = records_of(prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"), **ALL_IN_POOL)))
    assert [records[f"{number}"].annotation["image"]["image_id"] for number in range(3)] == expected


def test_long_names_that_collide_get_keys_of_their_own(tmp_path: Path) -> None:
    for ext in ("png", "tif"):
        name = "\uc0b0" * 28
        (tmp_path / "set" / ext).mkdir(parents=True)
        Image.fromarray(make_image(len(ext))).save(tmp_path / "set" / ext / f"{name}.{ext}")
        (tmp_path / "set" / ext / f"{name}.json").write_text(json.dumps(sa1b(masks())))
    records = records_of(prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"), **ALL_IN_POOL)))
    assert len(records) == 2 and all(key == safe_key(key) for key in records)


def test_prepared_folders_can_be_prepared_again(tmp_path: Path) -> None:
    """SA-1B's form with crowds, as prepare writes it, gives the same record."""
    first, _ = prepared(tmp_path, **coco_set(tmp_path / "set", {1: [mask_of(0, 1), mask_of(1, 2, iscrowd=1)]}))
    write_pair(tmp_path / "again", "1", json.dumps(first["1"].annotation))
    (second,) = prepared(tmp_path, root=str(tmp_path / "again"), **ALL_IN_POOL)[0].values()
    for name in ("annotations", "evaluation_only"):
        assert second.annotation[name] == first["1"].annotation[name]
