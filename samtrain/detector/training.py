"""One training of a detector: what `task=detector` does once, and a round of the data engine on what there is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch.utils.data import DataLoader

from samtrain.data.box_samples import BoxBatch, BoxTransform
from samtrain.data.datasets import EndlessBatchSampler, SamDataset, Source
from samtrain.detector.checkpoints import load_detector, save_detector
from samtrain.detector.lit import DetectorRecipe, LitDetector
from samtrain.detector.model import Detector, build_detector
from samtrain.metrics.boxes import COCO_SIZES
from samtrain.training.callbacks import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, ProgressDisplay, batches_seen
from samtrain.training.loggers import AppendingCSVLogger

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", message=r".*no `val_dataloader`")  # rounds do not validate their detectors

MONITOR = "val/box_ap"  # the highest keeps best.ckpt
RESULT = "detector.pth"


@dataclass(frozen=True, kw_only=True)
class Running:
    """What a training runs on and how often it says something: nothing here changes the weights of a training on the CPU.

    val_every_steps: None, or where there is nothing to validate on: never.
    """

    accelerator: str = "auto"
    precision: Any = "32-true"  # what Lightning's Trainer takes
    num_workers: int = 0
    cache_images: bool = False
    on_error: str = "raise"
    val_every_steps: int | None = None
    checkpoint_every_steps: int = 100
    log_every_steps: int = 10
    progress: bool = False


def train_detector(
    shards: Sequence[str | Source],
    init: Path | Detector | None,
    directory: Path,
    *,
    recipe: DetectorRecipe,
    seed: int,
    model: dict[str, Any] | None = None,
    val: Sequence[str] = (),
    size_limits: tuple[float, float] = COCO_SIZES,
    loggers: Sequence[Logger] | None = None,
    running: Running | None = None,
) -> Path:
    """Train on the boxes of all masks in the shards, or go on from `<directory>/checkpoints/last.ckpt`.

    Begins from `init`, a file or a detector, else from a new one, `build_detector(**model)`. Returns
    `<directory>/detector.pth`: the detector of the best validation (`val/box_ap`), without validation the last one. On the
    CPU it is a function of the arguments, however often the process was killed on the way, and to the byte. `loggers` None
    writes `<directory>/metrics.csv`. Raises ValueError for settings and shards that cannot be used, naming their key.
    """
    running = running or Running()
    checkpoints = directory / "checkpoints"
    best, last = checkpoints / "best.ckpt", checkpoints / "last.ckpt"
    resume = last if last.is_file() else None
    validates = bool(val) and running.val_every_steps is not None
    lit = LitDetector(
        detector=_begin(init, model, seed).train(),
        recipe=recipe,
        seed=seed,
        size_limits=size_limits,
        log_every_steps=running.log_every_steps,
    )
    train = _train_loader(shards, recipe, seed, running, start_step=batches_seen(resume))
    callbacks: list[Callback] = [ProgressDisplay()] if running.progress else []
    callbacks += [BestCheckpoint(path=best, monitor=MONITOR)] if validates else []
    callbacks += [LastCheckpoint(path=last, every_n_steps=running.checkpoint_every_steps)]
    loggers = [AppendingCSVLogger(directory / "metrics.csv")] if loggers is None else list(loggers)
    trainer = _trainer(directory, recipe, running, callbacks, loggers, validates=validates)
    log.info("training a detector for %d steps in %s%s", recipe.steps, directory, ", going on" if resume else "")
    trainer.fit(lit, train, _val_loader(val, recipe, running) if validates else None, ckpt_path=resume)
    for logger in loggers:
        logger.save()
    return save_detector(load_detector(best if validates else last), directory / RESULT)


def _begin(init: Path | Detector | None, model: dict[str, Any] | None, seed: int) -> Detector:
    if isinstance(init, Detector):
        return init
    if init is not None:
        return load_detector(init)
    return build_detector(**{"name": "small", "seed": seed, **(model or {})})


def _train_loader(
    shards: Sequence[str | Source], recipe: DetectorRecipe, seed: int, running: Running, *, start_step: int
) -> DataLoader:
    """Batches for ever, batch k a function of (seed, k)."""
    transform = BoxTransform(max_mask_area=recipe.max_mask_area, flip_probability=recipe.flip_probability)
    dataset = _dataset(shards, transform, running, seed)
    sampler = EndlessBatchSampler(
        shard_lengths=dataset.shard_lengths,
        weights=dataset.weights,
        batch_size=recipe.batch_size,
        seed=seed,
        start_step=start_step,
    )
    return _loader(dataset, running, batch_sampler=sampler)


def _val_loader(val: Sequence[str], recipe: DetectorRecipe, running: Running) -> DataLoader:
    dataset = _dataset(val, BoxTransform(max_mask_area=recipe.max_mask_area), running, 0)
    return _loader(dataset, running, batch_size=recipe.batch_size, shuffle=False)


def _dataset(shards: Sequence[str | Source], transform: BoxTransform, running: Running, seed: int) -> SamDataset:
    return SamDataset(
        shards,
        transform,  # type: ignore[arg-type]  # samples of boxes in place of masks; the dataset hands through what it makes
        seed=seed,
        on_error=running.on_error,
        cache_images=running.cache_images,
    )


def _loader(dataset: SamDataset, running: Running, **order: Any) -> DataLoader:
    workers = running.num_workers
    return DataLoader(dataset, collate_fn=BoxBatch.of, num_workers=workers, persistent_workers=workers > 0, **order)


def _trainer(
    directory: Path,
    recipe: DetectorRecipe,
    running: Running,
    callbacks: list[Callback],
    loggers: list[Logger],
    *,
    validates: bool,
) -> pl.Trainer:
    """On one device; deterministic on the CPU, where it costs nothing."""
    on_cpu = running.accelerator == "cpu" or (running.accelerator == "auto" and not torch.cuda.is_available())
    return pl.Trainer(
        accelerator=running.accelerator,
        devices=1,
        precision=running.precision,
        default_root_dir=directory,
        max_steps=recipe.steps,
        val_check_interval=min(running.val_every_steps or recipe.steps, recipe.steps),
        check_val_every_n_epoch=None,
        limit_val_batches=None if validates else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        deterministic=on_cpu,
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=running.progress,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
    )
