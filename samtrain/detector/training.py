"""One training of a detector, as `task=detector` runs once and the data engine in every semi-automatic round."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
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
from samtrain.detector.lit import LitDetector
from samtrain.detector.model import Detector, build_detector
from samtrain.detector.recipe import DetectorRecipe, RuntimeOptions
from samtrain.metrics.boxes import COCO_SIZES
from samtrain.terminal import counted
from samtrain.training.callbacks import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, ProgressDisplay, batches_seen
from samtrain.training.loggers import AppendingCSVLogger

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", message=r".*no `val_dataloader`")  # the rounds do not validate their detectors

MONITOR = "val/box_ap"  # best.ckpt is the checkpoint of its highest value
RESULT = "detector.pth"


def train_detector(
    shards: Sequence[str | Source],
    directory: Path,
    *,
    recipe: DetectorRecipe,
    seed: int,
    init: Path | Detector | None = None,
    val: Sequence[str] = (),
    size_limits: tuple[float, float] = COCO_SIZES,
    loggers: Sequence[Logger] | None = None,
    options: RuntimeOptions | None = None,
) -> Path:
    """Trains on the boxes of all masks in the shards, or resumes from `<directory>/checkpoints/last.ckpt`.

    Training starts from `init`, a file or a detector; None: from `recipe.init`, or else from a new detector. Returns
    `<directory>/detector.pth`: the detector of the best validation (`val/box_ap`), or the last one without validation. On the
    CPU this file is a function of the arguments, to the byte, however often the process was killed. `loggers` None writes
    `<directory>/metrics.csv`. Raises ValueError for settings and shards that cannot be used, naming the config key.
    """
    options = options or RuntimeOptions()
    checkpoints = directory / "checkpoints"
    best, last = checkpoints / "best.ckpt", checkpoints / "last.ckpt"
    resume = last if last.is_file() else None
    validates = bool(val) and recipe.val_every_steps is not None
    lit = LitDetector(
        detector=_initial_detector(init, recipe, seed).train(),
        recipe=recipe,
        seed=seed,
        size_limits=size_limits,
        log_every_steps=options.log_every_steps,
    )
    train = _train_loader(shards, recipe, seed, options, start_step=batches_seen(resume))
    callbacks: list[Callback] = [ProgressDisplay()] if options.progress else []
    callbacks += [BestCheckpoint(path=best, monitor=MONITOR)] if validates else []
    callbacks += [LastCheckpoint(path=last, every_n_steps=options.checkpoint_every_steps)]
    loggers = [AppendingCSVLogger(directory / "metrics.csv")] if loggers is None else list(loggers)
    trainer = _trainer(directory, recipe, options, callbacks, loggers, validates=validates)
    log.info("%s a detector for %s in %s.", "Resuming" if resume else "Training", counted(recipe.steps, "step"), directory)
    trainer.fit(lit, train, _val_loader(val, recipe, options) if validates else None, ckpt_path=resume)
    for logger in loggers:
        logger.save()
    return save_detector(load_detector(best if validates else last), directory / RESULT)


def _initial_detector(init: Path | Detector | None, recipe: DetectorRecipe, seed: int) -> Detector:
    """Returns the detector that training starts from."""
    if isinstance(init, Detector):
        return init
    if (file := init or recipe.init) is not None:
        return load_detector(file)
    changes = {} if recipe.image_size is None else {"image_size": recipe.image_size}
    return build_detector(recipe.name, seed=seed, backbone_weights=recipe.backbone_weights, **changes)


def _train_loader(
    shards: Sequence[str | Source], recipe: DetectorRecipe, seed: int, options: RuntimeOptions, *, start_step: int
) -> DataLoader:
    """Yields batches without end; batch k is a function of (seed, k)."""
    transform = BoxTransform(max_mask_area=recipe.max_mask_area, flip_probability=recipe.flip_probability)
    dataset = _dataset(shards, transform, options, seed)
    sampler = EndlessBatchSampler(
        shard_lengths=dataset.shard_lengths,
        weights=dataset.weights,
        batch_size=recipe.batch_size,
        seed=seed,
        start_step=start_step,
    )
    return _loader(dataset, options, batch_sampler=sampler)


def _val_loader(val: Sequence[str], recipe: DetectorRecipe, options: RuntimeOptions) -> DataLoader:
    dataset = _dataset(val, BoxTransform(max_mask_area=recipe.max_mask_area), options, 0)
    return _loader(dataset, options, batch_size=recipe.batch_size, shuffle=False)


def _dataset(shards: Sequence[str | Source], transform: BoxTransform, options: RuntimeOptions, seed: int) -> SamDataset:
    return SamDataset(
        shards,
        transform,  # type: ignore[arg-type]  # makes samples of boxes instead of masks, which the dataset passes on
        seed=seed,
        on_error=options.on_error,
        cache_images=options.cache_images,
    )


def _loader(dataset: SamDataset, options: RuntimeOptions, **order: Any) -> DataLoader:
    workers = options.num_workers
    return DataLoader(dataset, collate_fn=BoxBatch.of, num_workers=workers, persistent_workers=workers > 0, **order)


def _trainer(
    directory: Path,
    recipe: DetectorRecipe,
    options: RuntimeOptions,
    callbacks: list[Callback],
    loggers: list[Logger],
    *,
    validates: bool,
) -> pl.Trainer:
    """Returns a trainer on one device; it is deterministic on the CPU, where that costs nothing."""
    on_cpu = options.accelerator == "cpu" or (options.accelerator == "auto" and not torch.cuda.is_available())
    return pl.Trainer(
        accelerator=options.accelerator,
        devices=1,
        precision=options.precision,
        default_root_dir=directory,
        max_steps=recipe.steps,
        val_check_interval=min(recipe.val_every_steps or recipe.steps, recipe.steps),
        check_val_every_n_epoch=None,
        limit_val_batches=None if validates else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        deterministic=on_cpu,
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=options.progress,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
    )
