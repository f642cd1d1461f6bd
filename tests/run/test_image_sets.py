"""From the `data` node to shards, and how the model sees the images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samtrain.data.datasets import Source
from samtrain.data.image_set import DataConfig, ImageSet, records
from samtrain.data.shards import ShardWriter, expand_urls
from samtrain.modeling.build import sam_config
from samtrain.ops.rle import encode_mask
from samtrain.run.image_sets import data_config, is_native, open_set

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


def test_one_source_does_not_mix_stages(tmp_path: Path) -> None:
    for number, stage in ((1, "assisted_manual"), (2, "assisted_manual"), (7, "semi_automatic")):
        folder = tmp_path / "rounds" / str(number) / "shards"
        folder.mkdir(parents=True)
        (folder / f"{stage}_round{number:02d}_000000.tar").touch()

    def pool(manual: str) -> list[str]:
        data = shards(str(tmp_path / "rounds/1/shards"))
        return open_set({**data, "train": {"manual": {"urls": str(tmp_path / "rounds" / manual)}}}, "none").pool_tars()

    assert len(pool("*/shards/assisted_manual_*.tar")) == 2 and len(pool("[12]/shards")) == 2
    assert len(pool("*/shards/semi_automatic_*.tar")) == 1
    with pytest.raises(ValueError, match=r"data.train.manual.urls holds .*assisted_manual, semi_automatic.*assisted_manual_"):
        pool("*/shards")


def test_shards_keep_their_weights(tmp_path: Path) -> None:
    urls = write_shard(tmp_path, side=64, object_side=8)
    train = {"automatic": {"urls": urls, "weight": 1.0}, "manual": {"urls": urls, "weight": 10.0}}
    images = open_set(shards(urls, train=train), "unused")
    assert [source.weight for source in images.train] == [1.0, 10.0]
    assert images.test == []


@pytest.mark.parametrize("split", ["val", "test"])
def test_only_training_images_are_streamed(tmp_path: Path, split: str) -> None:
    """The error comes before the training, not after it."""
    urls = write_shard(tmp_path, side=64, object_side=8)
    with pytest.raises(ValueError, match=f"data.{split} holds https://host/a.tar: only data.train is streamed"):
        open_set(shards(urls, **{split: "https://host/a.tar"}), "unused")
    remote = shards(urls, train={"a": {"urls": "https://host/a.tar"}})
    assert is_native(remote, open_set(remote, "unused"), SMALL) is False, "remote shards are not read"


def test_on_error_skip_leaves_out_records_that_cannot_be_read(tmp_path: Path, caplog: Any) -> None:
    (tar,) = Path(write_shard(tmp_path, side=64, object_side=8)).glob("*.tar")
    tar.write_bytes(tar.read_bytes().replace(b'{"image":{"image_id":1', b'?"image":{"image_id":1'))
    with pytest.raises(ValueError, match="record image_1: its JSON cannot be parsed"):
        list(records([str(tar)]))
    assert [record.key for record in records([str(tar)], "skip")] == ["image_0", "image_2"]
    assert "Skipped a record: " in caplog.text
    data = shards(str(tmp_path))
    assert is_native(data, open_set(data, "unused"), SMALL) is False


def test_unknown_kind_and_frame_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.kind is 'foldr'.*synthetic, folder, shards"):
        open_set({"kind": "foldr"}, str(tmp_path))
    with pytest.raises(ValueError, match="data.frame is 'crop'.*resize"):
        is_native({**shards("a"), "frame": "crop"}, open_set(shards(write_shard(tmp_path, side=8, object_side=2)), ""), SMALL)


@dataclass(frozen=True, kw_only=True)
class TwoFolders(DataConfig):
    """A data set that a user brings: it trains on one folder of shards and validates on another."""

    train: str
    val: str

    def open(self, data_dir: str) -> ImageSet:
        return ImageSet(public=[], pool=[Source(self.train)], val=expand_urls(self.val), test=[])


def test_own_data_sets_are_named_by_target(tmp_path: Path) -> None:
    urls = write_shard(tmp_path, side=64, object_side=8)
    node = {"_target_": f"{__name__}.TwoFolders", "train": urls, "val": urls, "on_error": "skip"}
    images = open_set(node, "unused")
    assert images.train == [Source(urls)] and images.test == []
    assert data_config(node).on_error == "skip" and data_config(node).semi_automatic_pool("unused", images) == images.val
    with pytest.raises(ValueError, match="data._target_ is builtins.dict, which makes a dict"):
        data_config({"_target_": "builtins.dict"})


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.on_eror is not a setting .did you mean on_error"):
        data_config(shards(str(tmp_path), on_eror="skip"))
    with pytest.raises(ValueError, match="public.allow_pipe is not a setting"):
        data_config({"kind": "synthetic", "splits": {"val": 1}, "size": [64, 64], "allow_pipe": True}, "public")


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
