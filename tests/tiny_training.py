"""A training that takes a second: a model of a few thousand weights, blobs for images. For tests of the loop round it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from samtrain.losses import SamLoss
from samtrain.modeling.sam import Sam, SamConfig
from samtrain.prompts import PromptSampler
from samtrain.training.callbacks import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from samtrain.training.lit_sam import LitSam
from samtrain.training.loggers import AppendingCSVLogger
from samtrain.training.optim import AdamWConfig
from samtrain.types import Batch

SIZE = 32
TINY = SamConfig(
    model="vit_tiny",
    encoder_dim=32,
    encoder_depth=2,
    encoder_heads=2,
    global_attn_indexes=(1,),
    window_size=2,
    image_size=SIZE,
    patch_size=8,
    prompt_dim=32,
    mask_in_chans=8,
    decoder_heads=2,
    decoder_mlp_dim=32,
    iou_head_dim=32,
    drop_path=0.2,
    dropout=0.1,
)


def tiny_sam(seed: int = 0, config: SamConfig = TINY) -> Sam:
    torch.manual_seed(seed)
    return Sam(config)


def blobs(seed: int, counts: tuple[int, ...] = (2, 3)) -> Batch:
    """One image for each of `counts` with so many bright ellipses; the second is padded at the bottom."""
    generator = torch.Generator().manual_seed(seed)
    masks, images = [], []
    sizes = torch.tensor([[SIZE, SIZE] if i % 2 == 0 else [SIZE * 3 // 4, SIZE] for i in range(len(counts))])
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    for count, (height, _) in zip(counts, sizes.tolist(), strict=True):
        image = torch.randint(0, 80, (3, SIZE, SIZE), generator=generator)
        for _ in range(count):
            cy, cx, ry, rx = (torch.rand(4, generator=generator) * torch.tensor([20, 26, 6, 8]) + 3).tolist()
            mask = (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1) & (y < height)
            colour = torch.randint(100, 255, (3, 1, 1), generator=generator)
            image = torch.where(mask, colour, image)
            masks.append(mask)
        images.append(image * (y < height))
    return Batch(
        images=torch.stack(images).to(torch.uint8),
        masks=torch.stack(masks),
        image_index=torch.repeat_interleave(torch.tensor(counts)),
        weights=torch.ones(len(masks)),
        input_sizes=sizes,
        original_sizes=sizes,
        keys=[f"blobs_{seed}_{i}" for i in range(len(counts))],
    )


def join(batches: list[Batch]) -> Batch:
    """One batch of all images."""
    tensors = {name: torch.cat([getattr(b, name) for b in batches]) for name in ("images", "masks", "weights")}
    sizes = torch.cat([b.input_sizes for b in batches])
    starts = [sum(len(b.images) for b in batches[:i]) for i in range(len(batches))]
    index = torch.cat([b.image_index + start for b, start in zip(batches, starts, strict=True)])
    keys = [key for b in batches for key in b.keys]
    return Batch(**tensors, image_index=index, input_sizes=sizes, original_sizes=sizes, keys=keys)


class Blobs(Dataset):
    """Batch number k, by itself a function of k."""

    def __init__(self, length: int | None, first: int = 0) -> None:
        self.length, self.first = length, first

    def __len__(self) -> int:
        assert self.length is not None
        return self.length

    def __getitem__(self, index: int) -> Batch:
        return blobs(self.first + index)


class From(Sampler[int]):
    """start, start + step, ... for ever."""

    def __init__(self, start: int, step: int) -> None:
        self.start, self.step = start, step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start, self.step)


class BlobData(pl.LightningDataModule):
    """Goes on where a run goes on, and ranks share what there is, as with SamDataModule."""

    def __init__(self, num_workers: int = 0, num_val: int = 2) -> None:
        super().__init__()
        self.num_workers, self.num_val = num_workers, num_val

    def train_dataloader(self) -> DataLoader:
        start, ranks = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready, self.trainer.world_size
        return self._loader(Blobs(None), sampler=From(start * ranks + self.trainer.global_rank, ranks))

    def val_dataloader(self) -> DataLoader:
        mine = range(self.trainer.global_rank, self.num_val, self.trainer.world_size)
        return self._loader(Subset(Blobs(self.num_val, first=1_000_000), mine))

    def _loader(self, dataset: Dataset, **settings: Any) -> DataLoader:
        # workers of a fork notice that their parent was killed, those of a fork server live on
        context = "fork" if self.num_workers else None
        return DataLoader(dataset, batch_size=None, num_workers=self.num_workers, multiprocessing_context=context, **settings)


class ListData(pl.LightningDataModule):
    """Batches that are given, the same on all ranks."""

    def __init__(self, batches: list[Batch], validation: list[Batch] | None = None) -> None:
        super().__init__()
        self.batches, self.validation = batches, validation

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader | list:
        return DataLoader(self.validation, batch_size=None) if self.validation else []  # type: ignore[arg-type]


def tiny_lit(**changes: Any) -> LitSam:
    settings: dict[str, Any] = {
        "sam": tiny_sam(),
        "prompts": PromptSampler(num_points=2, num_mask_only=2),
        "loss": SamLoss(resolution="decoder"),
        "optim": AdamWConfig(learning_rate=1e-3, warmup_steps=3, layer_decay=0.9, milestones=(60, 90), max_steps=100),
        "seed": 7,
    }
    return LitSam(**(settings | changes))


def checkpointing(run_dir: Path) -> list[pl.Callback]:
    return [
        BestCheckpoint(path=run_dir / "checkpoints" / "best.ckpt"),
        LastCheckpoint(path=run_dir / "checkpoints" / "last.ckpt", every_n_steps=4),
    ]


def tiny_trainer(run_dir: Path, *, max_steps: int, callbacks: list[pl.Callback] | None = None, **changes: Any) -> pl.Trainer:
    """A Trainer as `tasks` makes it, on one CPU core; with checkpoints if no callbacks are given."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": max_steps,
        "val_check_interval": 6,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "gradient_clip_val": 0.1,
        "deterministic": True,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": run_dir,
        "logger": [AppendingCSVLogger(run_dir / "metrics.csv")],
        "callbacks": checkpointing(run_dir) if callbacks is None else callbacks,
        "plugins": [AtomicCheckpointIO()],
    }
    return pl.Trainer(**(settings | changes))


def fit(run_dir: Path, *, max_steps: int, num_workers: int = 0, num_val: int = 2, **changes: Any) -> LitSam:
    """Train, or go on where `run_dir` stopped."""
    torch.set_num_threads(1)
    last = run_dir / "checkpoints" / "last.ckpt"
    lit = tiny_lit()
    trainer = tiny_trainer(run_dir, max_steps=max_steps, **changes)
    trainer.fit(lit, BlobData(num_workers, num_val), ckpt_path=last if last.is_file() else None)
    return lit


def fork_server() -> Any:
    """A multiprocessing context whose processes fork from one that has imported everything: seconds saved for each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training"])
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # or the preload is passed over in silence
    return context


def weights_of(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]
