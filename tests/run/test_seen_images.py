"""Images that a model was trained on are not taken for new ones, whatever their folder is called."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from samtrain.data.contents import contents_of
from samtrain.data.shards import ShardWriter
from samtrain.modeling.trained_on import images_trained_on
from samtrain.run.evaluation import check_test_images
from samtrain.run.image_sets import open_set
from samtrain.run.seen_images import check_splits, check_unseen
from samtrain.training.callbacks import TrainedOn


def config_of(train: list[Path], held_back: list[Path], checkpoint: Path | None = None, **data: Any) -> dict[str, Any]:
    urls = [str(path) for path in held_back]
    node = {"kind": "shards", "train": {"a": {"urls": [str(path) for path in train]}}, "val": urls, "test": urls, **data}
    return {"data": node, "loader": {"batch_size": 1}, "checkpoint": str(checkpoint) if checkpoint else None}


def write_checkpoint(path: Path, tars: list[Path]) -> Path:
    content: dict[str, Any] = {"state_dict": {"a": torch.zeros(2)}}
    TrainedOn(contents_of(map(str, tars))).on_save_checkpoint(None, None, content)
    torch.save(content, path)
    return path


@pytest.fixture
def tars(tmp_path: Path, write_set) -> list[Path]:
    return write_set(tmp_path / "shards", n=6, max_count=2, varied=True)


def test_a_checkpoint_remembers_its_images(tmp_path: Path, tars: list[Path]) -> None:
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", tars)
    assert images_trained_on(checkpoint) == contents_of(map(str, tars)) and len(images_trained_on(checkpoint)) == 6
    torch.save({"state_dict": {}}, tmp_path / "b.ckpt")
    (tmp_path / "c.ckpt").write_bytes(b"no checkpoint")
    for other in ("b.ckpt", "c.ckpt", "none.ckpt"):
        assert images_trained_on(tmp_path / other) == set()


def test_images_that_were_trained_on_are_refused_under_any_name(tmp_path: Path, tars: list[Path]) -> None:
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", tars[:2])
    renamed = (tmp_path / "other.tar").absolute()
    renamed.write_bytes(tars[1].read_bytes())
    check_unseen(config_of(tars, tars), [str(tars[2])], "data.test", checkpoint)
    with pytest.raises(ValueError, match=r"2 of the 4 images of data.test are among those that .*a.ckpt was trained on.*allow"):
        check_unseen(config_of(tars, tars), [str(tars[2]), str(renamed)], "data.test", checkpoint)
    check_unseen(config_of(tars, tars, seen_images="allow"), [str(renamed)], "data.test", checkpoint)


def test_test_images_without_an_object_are_refused_before_training(tmp_path: Path, tars: list[Path]) -> None:
    with ShardWriter(tmp_path / "empty", "a") as writer:
        writer.write("a", b"not decoded here", "png", {"image": {"width": 4, "height": 4}, "annotations": []})
    for held_back, refused in ((tars[2:], False), (writer.paths, True), ([*writer.paths, tars[0]], False)):
        config = config_of(tars, held_back)
        with pytest.raises(ValueError, match="no test image holds an object.*data.test") if refused else nullcontext():
            check_test_images(config, open_set(config["data"], str(tmp_path)))


def test_splits_that_share_images_are_refused_before_training(tmp_path: Path, tars: list[Path]) -> None:
    def check(config: dict[str, Any]) -> None:
        images = open_set(config["data"], str(tmp_path))
        check_splits(config, images, images.train)

    check(config_of(tars[:2], tars[2:]))
    with pytest.raises(ValueError, match="2 of the 4 images of data.test are among those that this run would train on"):
        check(config_of(tars[:2], tars[1:]))
    with pytest.raises(ValueError, match="data.test are among those that .*a.ckpt was trained on"):
        check(config_of(tars[:2], tars[2:], write_checkpoint(tmp_path / "a.ckpt", tars[2:])))
    alone = config_of(tars, tars, test=None)
    with pytest.raises(ValueError, match="data.val"):
        check(alone)
    alone["loader"]["val_on_train"] = True  # the images for validation are then not used
    check(alone)
