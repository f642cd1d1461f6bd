"""Trains a small CLIP on objects with captions, for text prompts where no trained CLIP is at hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from samtrain.data.caption_samples import CaptionSample, CaptionTransform
from samtrain.data.datasets import EndlessBatchSampler, SamDataset, Source
from samtrain.prompts import seeded_generator
from samtrain.terminal import counted
from samtrain.text.clip import Clip
from samtrain.text.loading import new_clip, save_clip
from samtrain.training.callbacks import AtomicCheckpointIO, LastCheckpoint, ProgressDisplay, batches_seen
from samtrain.training.finite import LossWatch
from samtrain.training.optim import adamw_with_cosine

log = logging.getLogger(__name__)

MASKED = 21  # random stream of a step: which objects have their attention masked
MAX_SCALE = 100.0  # of the similarities (CLIP, section 2.5)


@dataclass(frozen=True, kw_only=True)
class ClipRecipe:
    """The `clip_training` node: the sizes of a small CLIP, and how it is trained.

    model:           open_clip's model_cfg
    scenes:          synthetic scenes that are painted for it
    images, objects: per step; of the images' objects at most so many are used
    mask_attention:  share of the objects in which the output token sees the object alone
    """

    model: dict[str, Any] = field(default_factory=dict)
    scenes: int
    steps: int
    images: int
    objects: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    mask_attention: float
    checkpoint_every_steps: int

    def __post_init__(self) -> None:
        for name in ("scenes", "steps", "images", "objects", "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"clip_training.{name} is {getattr(self, name)}: give 1 or more")
        if self.learning_rate <= 0:
            raise ValueError(f"clip_training.learning_rate is {self.learning_rate}: give a number above 0")
        if not 0 <= self.mask_attention <= 1:
            raise ValueError(f"clip_training.mask_attention is {self.mask_attention}: give a share from 0 to 1")


class LitClip(pl.LightningModule):
    """Trains a CLIP by the contrastive loss of CLIP; the objects of a batch are each other's negative examples."""

    def __init__(self, *, clip: Clip, recipe: ClipRecipe, seed: int, log_every_steps: int = 10) -> None:
        super().__init__()
        self.clip, self.recipe, self.seed, self.log_every_steps = clip, recipe, seed, log_every_steps
        self.loss_watch = LossWatch(cure="lower clip_training.learning_rate")

    def training_step(self, batch: CaptionSample, batch_idx: int) -> Tensor:
        step = self.trainer.fit_loop.total_batch_idx  # also counts the batches before a resume
        generator = seeded_generator("cpu", self.seed, MASKED, step)
        masked = torch.rand(len(batch.captions), generator=generator) < self.recipe.mask_attention
        everywhere = torch.ones_like(batch.inside[:1])
        inside = torch.where(masked.to(batch.inside.device)[:, None, None], batch.inside, everywhere)
        scale = self.clip.model.logit_scale.exp().clamp(max=MAX_SCALE)
        logits = scale * self.clip.embed_crops(batch.crops, inside) @ self.clip.embed_texts(batch.captions).T
        own = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        self.loss_watch.add(step + 1, loss, [batch.key])
        self.log("train/loss", loss.detach(), logger=False, batch_size=1)
        if (step + 1) % self.log_every_steps == 0 or step + 1 == self.recipe.steps:
            self.loss_watch.check(self, weights=False)
            right = (logits.argmax(dim=1) == own).float().mean()
            for logger in self.loggers:
                logger.log_metrics({"train/loss": float(loss.detach()), "train/right_caption": float(right)}, step=step + 1)
        return loss

    def configure_optimizers(self) -> Any:
        """Returns AdamW, without weight decay on parameters with one axis, and its cosine schedule."""
        recipe = self.recipe
        return adamw_with_cosine(
            self.clip,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup_steps,
            steps=recipe.steps,
        )


def train_clip(
    shards: Sequence[str | Source],
    directory: Path,
    *,
    recipe: ClipRecipe,
    scale: tuple[float, float],
    zero_background: float,
    seed: int,
    loggers: Sequence[Logger],
    accelerator: str = "auto",
    progress: bool = True,
) -> Path:
    """Trains on the captions in the shards, or resumes from `<directory>/checkpoints/last.ckpt`; returns `<directory>/clip`.

    That folder is read by `load_clip`, and by open_clip as local-dir:. A finished training is not repeated.
    """
    folder, last = directory / "clip", directory / "checkpoints" / "last.ckpt"
    if (folder / "open_clip_config.json").is_file():
        return folder
    resume = last if last.is_file() else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = new_clip(recipe.model)
    lit = LitClip(clip=clip.train(), recipe=recipe, seed=seed)
    transform = CaptionTransform(side=clip.image_size, scale=scale, zero_background=zero_background, varied=True)
    dataset = SamDataset(shards, transform, seed=seed, cache_images=True, empty_images=False)  # type: ignore[arg-type]
    sampler = EndlessBatchSampler(
        shard_lengths=dataset.shard_lengths,
        weights=dataset.weights,
        batch_size=recipe.images,
        seed=seed,
        start_step=batches_seen(resume),
    )
    loader = DataLoader(dataset, collate_fn=partial(CaptionSample.of, count=recipe.objects), batch_sampler=sampler)
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=recipe.steps,
        limit_val_batches=0,
        use_distributed_sampler=False,
        deterministic=accelerator == "cpu" or not torch.cuda.is_available(),
        gradient_clip_val=1.0,
        logger=list(loggers),
        callbacks=[
            *([ProgressDisplay()] if progress else []),
            LastCheckpoint(path=last, every_n_steps=recipe.checkpoint_every_steps),
        ],
        enable_progress_bar=progress,
        enable_model_summary=False,
        default_root_dir=directory,
        plugins=[AtomicCheckpointIO()],
    )
    log.info("%s a CLIP for %s in %s.", "Resuming" if resume else "Training", counted(recipe.steps, "step"), directory)
    trainer.fit(lit, loader, ckpt_path=resume)
    for logger in loggers:
        logger.save()
    return save_clip(clip, recipe.model, folder)


@torch.no_grad()
def choices_of_images(clip: Clip, samples: Sequence[CaptionSample]) -> float:
    """Returns how often a caption that is unique in its image is most similar to the crop of its own object."""
    right: list[bool] = []
    for sample in samples:
        similarity = clip.embed_texts(sample.captions) @ clip.embed_crops(sample.crops, sample.inside).T
        unique = [i for i, caption in enumerate(sample.captions) if sample.captions.count(caption) == 1]
        right += [int(similarity[i].argmax()) == i for i in unique]
    return sum(right) / max(len(right), 1)
