"""Data loaders for Lightning: endless training batches, and the same finite validation batches each time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from samtrain.data.datasets import EndlessBatchSampler, RemoteSamDataset, SamDataset, Source, Transform, collate
from samtrain.data.shards import expand_urls, is_remote
from samtrain.data.transforms import Sample
from samtrain.training.config import LoaderConfig

log = logging.getLogger(__name__)

PREFETCH = 4  # batches that each worker prepares ahead: decoding times vary by a factor of ten between images


class _RankShare(Dataset):
    """The images of a dataset that one rank validates: every `world_size`-th one.

    All ranks have equally many, because under FSDP they encode each batch together and a rank without a batch would leave the
    others waiting. A missing image is filled with another one that has lost its objects, so that it counts for nothing.
    """

    def __init__(self, dataset: SamDataset, rank: int, world_size: int) -> None:
        self.dataset = dataset
        self.images = range(rank, len(dataset), world_size)
        self.length = -(-len(dataset) // world_size)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index < len(self.images):
            return self.dataset[self.images[index]]
        filling = self.dataset[0]
        return replace(filling, masks=filling.masks[:0])


class SamDataModule(pl.LightningDataModule):
    """Yields training batches until `max_steps` ends the run, and each validation image once.

    train:      shards or `{urls, weight, frame}`, all local or all remote
    val:        local shards, which the ranks divide among themselves
    start_step: batches that this rank has seen in an earlier process; training continues behind them
    empty_images: train on images without objects, too; otherwise other images take their places

    Use it with `Trainer(use_distributed_sampler=False)`: it takes rank and world size from the trainer. PyTorch gives each
    worker one thread.
    """

    def __init__(
        self,
        *,
        train: Sequence[Source | Mapping[str, Any] | str],
        val: str | Sequence[str] = (),
        train_transform: Transform,
        val_transform: Transform | None = None,
        loader: LoaderConfig,
        seed: int = 0,
        start_step: int = 0,
        on_error: str = "raise",
        allow_pipe: bool = False,
        empty_images: bool = False,
    ) -> None:
        super().__init__()
        self.train = [Source.of(source) for source in train]
        self.val = [val] if isinstance(val, str) else list(val)
        self.train_transform, self.val_transform = train_transform, val_transform or train_transform
        self.loader, self.seed, self.start_step = loader, seed, start_step
        self.on_error, self.allow_pipe, self.empty_images = on_error, allow_pipe, empty_images
        self.train_dataset: SamDataset | RemoteSamDataset | None = None
        self.val_dataset: SamDataset | None = None

    def setup(self, stage: str | None = None) -> None:
        """Indexes the shards at the first call."""
        if self.train_dataset is None and stage in (None, "fit"):
            self.train_dataset = self._make_train_dataset()
        if self.val_dataset is None and self.val:
            self.val_dataset = self._make_dataset([Source(self.val)], self.val_transform, self.loader.max_val_masks)

    def check_validation(self) -> None:
        """Raises ValueError if there are validation images and none of them holds an object that is measured."""
        self.setup("validate")
        dataset = self.val_dataset
        if dataset is not None and not any(len(dataset.get(0, i).masks) for i in range(len(dataset))):
            raise ValueError(
                f"none of the {len(dataset)} validation images holds an object that loader.min_mask_area and "
                "loader.max_mask_area keep, so nothing could be measured: give other images (data.val)"
            )

    def train_dataloader(self) -> DataLoader:
        dataset = self.train_dataset
        if isinstance(dataset, RemoteSamDataset):
            return self._make_loader(dataset, batch_size=self.loader.batch_size)
        assert dataset is not None, "Lightning calls setup first"
        rank, world_size = self._rank_and_world_size()
        sampler = EndlessBatchSampler(
            shard_lengths=dataset.shard_lengths,
            weights=dataset.weights,
            batch_size=self.loader.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            start_step=self.start_step,
        )
        return self._make_loader(dataset, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader | list:
        if self.val_dataset is None:
            return []
        rank, world_size = self._rank_and_world_size()
        mine = _RankShare(self.val_dataset, rank, world_size)
        return self._make_loader(mine, batch_size=self.loader.val_batch_size or self.loader.batch_size, shuffle=False)

    def _make_train_dataset(self) -> SamDataset | RemoteSamDataset:
        """Returns a dataset that streams remote shards or reads local ones by position; raises ValueError for a mixture."""
        urls = [(expand_urls(source.urls), source.weight) for source in self.train]
        remote = [is_remote(url) for paths, _ in urls for url in paths]
        if not any(remote):
            return self._make_dataset(self.train, self.train_transform, self.loader.max_masks, self.empty_images)
        if not all(remote):
            raise ValueError("data.train mixes remote and local shards, which have no common order: download the remote ones")
        if any(source.frame for source in self.train):
            raise ValueError("a source in data.train has a frame of its own and is streamed: download it, or set data.frame")
        rank, world_size = self._rank_and_world_size()
        dataset = RemoteSamDataset(
            urls,
            self.train_transform,
            max_masks=self.loader.max_masks,
            seed=self.seed,
            start_step=self.start_step,
            rank=rank,
            world_size=world_size,
            on_error=self.on_error,
            allow_pipe=self.allow_pipe,
            reduced_jpeg=self.loader.reduced_jpeg,
            empty_images=self.empty_images,
        )
        dataset.check_parts(self.loader.num_workers)
        if self.start_step:
            log.warning("Streamed shards have no positions, so the resumed run sees other images than an uninterrupted one.")
        return dataset

    def _make_dataset(
        self, sources: Sequence[Source], transform: Transform, max_masks: int, empty_images: bool = True
    ) -> SamDataset:
        return SamDataset(
            sources,
            transform,
            max_masks=max_masks,
            seed=self.seed,
            on_error=self.on_error,
            cache_images=self.loader.cache_images,
            reduced_jpeg=self.loader.reduced_jpeg,
            empty_images=empty_images,
        )

    def _make_loader(self, dataset, **kwargs) -> DataLoader:
        return DataLoader(
            dataset,
            collate_fn=collate,
            num_workers=self.loader.num_workers,
            persistent_workers=self.loader.num_workers > 0,
            prefetch_factor=PREFETCH if self.loader.num_workers > 0 else None,
            pin_memory=torch.cuda.is_available(),
            **kwargs,
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Returns the trainer's rank and world size, or (0, 1) without a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
