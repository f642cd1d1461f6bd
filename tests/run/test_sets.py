"""From `conf/data/` to shards, and how images are seen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samtrain.data.shards import ShardWriter
from samtrain.modeling.build import sam_config
from samtrain.ops.rle import encode_mask
from samtrain.run.image_sets import is_native, open_set, records

SMALL = sam_config("vit_tiny", image_size=128, patch_size=8)


def write_shard(folder: Path, *, side: int, object_side: int, count: int = 3) -> str:
    """Images with one square each."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), dtype=np.uint8)).save(stream, "png")
    mask = np.zeros((side, side), dtype=bool)
    mask[:object_side, :object_side] = True
    objects = [{"id": 1, "segmentation": encode_mask(mask), "area": object_side**2}]
    with ShardWriter(folder, "some") as writer:
        for i in range(count):
            annotation = {"image": {"image_id": i, "width": side, "height": side}, "annotations": objects}
            writer.write(f"image_{i}", stream.getvalue(), "png", annotation)
    return str(folder)


def shards(urls: str, **changes: Any) -> dict[str, Any]:
    data = {"kind": "shards", "train": {"a": {"urls": urls}}, "val": urls, "test": None, "frame": "auto"}
    return {**data, **changes}


def test_synthetic_scenes_are_made_once(tmp_path: Path) -> None:
    data = {"kind": "synthetic", "splits": {"public": 2, "pool": 1, "val": 1, "test": 1}, "size": [64, 64], "seed": 0}
    first = open_set(data, str(tmp_path))
    assert open_set(data, str(tmp_path)) == first
    assert first.train == first.public != first.pool
    keys = [record.key for tars in (first.pool_tars(), first.val, first.test) for record in records(tars)]
    assert len(set(keys)) == 3


def test_a_set_without_public_images_trains_on_its_pool(tmp_path: Path) -> None:
    data = {"kind": "synthetic", "splits": {"pool": 1, "val": 1}, "size": [64, 64], "seed": 0}
    images = open_set(data, str(tmp_path))
    assert images.train == images.pool and images.test == []


def test_shards_keep_their_weights(tmp_path: Path) -> None:
    urls = write_shard(tmp_path, side=64, object_side=8)
    train = {"automatic": {"urls": urls, "weight": 1.0}, "manual": {"urls": urls, "weight": 10.0}}
    images = open_set(shards(urls, train=train), "unused")
    assert [source.weight for source in images.train] == [1.0, 10.0]
    assert images.test == []


@pytest.mark.parametrize("split", ["val", "test"])
def test_only_training_images_are_streamed(tmp_path: Path, split: str) -> None:
    """Told at once, not after the training."""
    urls = write_shard(tmp_path, side=64, object_side=8)
    with pytest.raises(ValueError, match=f"data.{split} holds https://host/a.tar: only data.train is streamed"):
        open_set(shards(urls, **{split: "https://host/a.tar"}), "unused")
    remote = shards(urls, train={"a": {"urls": "https://host/a.tar"}})
    assert is_native(remote, open_set(remote, "unused"), SMALL) is False, "what is not on a disk is not looked at"


def test_records_that_cannot_be_read_are_left_out_where_that_is_wanted(tmp_path: Path, caplog: Any) -> None:
    (tar,) = Path(write_shard(tmp_path, side=64, object_side=8)).glob("*.tar")
    tar.write_bytes(tar.read_bytes().replace(b'{"image":{"image_id":1', b'?"image":{"image_id":1'))
    with pytest.raises(ValueError, match="record image_1: its JSON is no JSON"):
        list(records([str(tar)]))
    assert [record.key for record in records([str(tar)], "skip")] == ["image_0", "image_2"]
    assert "left out: " in caplog.text
    data = shards(str(tmp_path))
    assert is_native(data, open_set(data, "unused"), SMALL) is False


def test_unknown_kind_and_frame_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.kind is 'foldr'.*synthetic, folder, shards"):
        open_set({"kind": "foldr"}, str(tmp_path))
    with pytest.raises(ValueError, match="data.frame is 'crop'.*resize"):
        is_native({"frame": "crop"}, open_set(shards(write_shard(tmp_path, side=8, object_side=2)), ""), SMALL)


@pytest.mark.parametrize(
    ("side", "object_side", "native"),
    [
        (512, 16, True),  # 2 cells of the decoder when shrunk to 128
        (512, 80, False),  # 10 cells
        (128, 4, False),  # small, but the image is not larger than the input: there is nothing to gain
    ],
)
def test_auto_frame_looks_at_the_objects(tmp_path: Path, side: int, object_side: int, native: bool) -> None:
    data = shards(write_shard(tmp_path, side=side, object_side=object_side))
    images = open_set(data, "unused")
    assert is_native(data, images, SMALL) == native
    assert is_native({**data, "frame": "resize"}, images, SMALL) is False
    assert is_native({**data, "frame": "native"}, images, SMALL) is True
