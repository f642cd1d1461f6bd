from __future__ import annotations

from dataclasses import fields
from itertools import islice
from math import ceil
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from samtrain.data.transforms import NativeCrop, ResizeLongestSide
from samtrain.training.config import LoaderConfig
from samtrain.training.datamodule import SamDataModule

LOADER = {field.name for field in fields(LoaderConfig)}


@pytest.fixture
def module(tmp_path, write_set):
    """Makes a module over seven training and five validation images."""
    write_set(tmp_path / "train", n=7, prefix="train", max_count=3)
    write_set(tmp_path / "val", n=5, prefix="val")

    def make(rank: int = 0, world_size: int = 1, **changes) -> SamDataModule:
        options = {
            "train": [{"urls": str(tmp_path / "train"), "weight": 2.0}],
            "val": str(tmp_path / "val"),
            "train_transform": NativeCrop(image_size=16),
            "val_transform": ResizeLongestSide(image_size=16),
            **{name: value for name, value in changes.items() if name not in LOADER},
        }
        loader = {"batch_size": 3, "val_batch_size": 2, "max_masks": 2, "max_val_masks": 1}
        loader |= {name: value for name, value in changes.items() if name in LOADER}
        made = SamDataModule(**options, loader=LoaderConfig(**loader))
        made.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        made.setup("fit")
        return made

    return make


def batches(loader, count: int) -> list:
    return list(islice(loader, count))


def test_training_has_no_end_and_validation_is_the_same_each_time(module):
    made = module()
    found = batches(made.train_dataloader(), 20)
    assert all(len(batch.keys) == 3 and len(batch.masks) <= 6 for batch in found)
    assert {key for batch in found for key in batch.keys} == {f"train_{i}" for i in range(7)}
    one, two = (list(made.val_dataloader()) for _ in range(2))
    assert [batch.keys for batch in one] == [["val_0", "val_1"], ["val_2", "val_3"], ["val_4"]]
    assert all(torch.equal(a.masks, b.masks) and len(a.masks) == len(a.keys) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("world_size", [2, 8])
def test_all_ranks_validate_equally_many_batches(module, world_size):
    """Even with fewer images than ranks: what fills a rank has no objects, so each image counts once."""
    ranks = [list(module(rank=rank, world_size=world_size).val_dataloader()) for rank in range(world_size)]
    assert {sum(len(batch.keys) for batch in own) for own in ranks} == {ceil(5 / world_size)}
    counted = [batch.keys[i] for own in ranks for batch in own for i in batch.image_index[batch.weights > 0].tolist()]
    assert sorted(counted) == [f"val_{i}" for i in range(5)]


def test_validation_without_an_object_is_refused(module, write_set, tmp_path):
    module().check_validation()
    module(val=[]).check_validation()
    with pytest.raises(ValueError, match="none of the 5 validation images holds an object.*data.val"):
        module(val_transform=ResizeLongestSide(image_size=16, min_mask_area=1000)).check_validation()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_goes_on_where_it_stopped(module, num_workers):
    whole = batches(module(num_workers=num_workers).train_dataloader(), 8)
    made = module()
    made.start_step = 5
    for one, two in zip(whole[5:], batches(made.train_dataloader(), 3), strict=True):
        assert one.keys == two.keys and torch.equal(one.images, two.images) and torch.equal(one.masks, two.masks)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_share_both_sets(module, num_workers):
    whole = [key for batch in batches(module(batch_size=6).train_dataloader(), 4) for key in batch.keys]
    ranks = [module(rank, 2, num_workers=num_workers) for rank in range(2)]
    parts = [batches(rank.train_dataloader(), 4) for rank in ranks]
    assert [key for pair in zip(*parts, strict=True) for batch in pair for key in batch.keys] == whole
    val = [key for rank in ranks for batch in rank.val_dataloader() for key in batch.keys]
    assert set(val) == {f"val_{i}" for i in range(5)} and len(val) == 6  # one image fills the second rank, without objects


def test_without_validation(module):
    assert module(val=()).val_dataloader() == []


def test_remote_and_local(module, tmp_path):
    with pytest.raises(ValueError, match="mixes remote and local shards"):
        module(train=[str(tmp_path / "train"), "https://host/a.tar"])
    with pytest.raises(ValueError, match="1 remote shards for 2 ranks"):
        module(world_size=2, train=["https://host/a.tar"])
    pipes = [f"pipe:cat {path}" for path in sorted((tmp_path / "train").glob("*.tar"))]
    with pytest.raises(ValueError, match="data.allow_pipe=true"):
        module(train=pipes)
    found = batches(module(train=pipes, allow_pipe=True).train_dataloader(), 4)
    assert {key for batch in found for key in batch.keys} == {f"train_{i}" for i in range(7)}


def test_a_streamed_run_that_goes_on_says_that_its_images_are_others(module, tmp_path, caplog):
    pipes = [f"pipe:cat {path}" for path in sorted((tmp_path / "train").glob("*.tar"))]
    options = {"train": pipes, "allow_pipe": True}
    whole = [batch.keys for batch in batches(module(**options).train_dataloader(), 6)]
    assert "sees other images" not in caplog.text
    rest = [[batch.keys for batch in batches(module(start_step=4, **options).train_dataloader(), 2)] for _ in range(2)]
    assert rest[0] == rest[1] != whole[4:]
    assert "the resumed run sees other images" in caplog.text


class Recorder(pl.LightningModule):
    """Writes down which images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []
        self.validated: list[str] = []

    def training_step(self, batch, batch_index):
        self.seen.append(batch.keys)
        return self.weight * batch.images.float().mean()

    def validation_step(self, batch, batch_index) -> None:
        self.validated += batch.keys

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_takes_it(module, tmp_path):
    made, model = module(), Recorder()
    expected = [batch.keys for batch in batches(made.train_dataloader(), 6)]
    trainer = pl.Trainer(
        max_steps=6,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=made)
    assert model.seen == expected
    assert model.validated == [f"val_{i}" for i in range(5)] * 2
