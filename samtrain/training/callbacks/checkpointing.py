"""Checkpoints from which a killed run resumes as if it had never stopped.

A checkpoint is written completely or not at all. `last.ckpt` is written after every validation and never right before one,
because a run that resumes there would skip that validation. When a run resumes, it cuts `metrics.csv` back to its checkpoint.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO

from samtrain.files import atomic_path
from samtrain.modeling.lora import KEY as LORA
from samtrain.training.callbacks.trained_on import KEY as TRAINED_ON
from samtrain.training.finite import LossWatch

CONFIG_KEYS = ("sam_config", "detector_config")  # a checkpoint has one of them
WEIGHTS_ONLY = {
    "only": (
        "state_dict", *CONFIG_KEYS, "images_seen", "masks_seen", TRAINED_ON, LORA, "global_step", "pytorch-lightning_version",
    )
}


class AtomicCheckpointIO(CheckpointIO):
    """Writes a temporary file, syncs it and renames it; reads without running code from the file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes the checkpoint; `storage_options={"only": keys}` leaves other keys out.

        Raises OSError if the disk is full; the previous file is then unchanged.
        """
        path = Path(path)
        if storage_options is not None:
            checkpoint = {key: checkpoint[key] for key in storage_options["only"] if key in checkpoint}
        try:
            with atomic_path(path, sole_writer=True) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"{path} could not be written ({error}), and an earlier file of this name is unchanged. "
                "Make room on the disk, or set another run_dir, and give the same command again"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class BestCheckpoint(Checkpoint):
    """Keeps the weights, without the optimiser, of the validation with the highest `monitor`."""

    def __init__(self, *, path: str | Path, monitor: str = "val/miou_1") -> None:
        self.path = Path(path)
        self.monitor = monitor
        self.best_score = -math.inf
        self.best_step = 0
        self.scores: dict[str, float] = {}  # all metrics of the best validation

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"callbacks.monitor is {self.monitor!r}, which validation does not measure: choose from {known}")
        score = float(trainer.callback_metrics[self.monitor])
        if score > self.best_score:
            check_finite(pl_module)
            self.best_score, self.best_step = score, trainer.global_step
            self.scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            trainer.save_checkpoint(self.path, weights_only=False, storage_options=WEIGHTS_ONLY)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step, "scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
        self.scores = state_dict["scores"]


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every `every_n_steps` steps and after each validation; must come after `BestCheckpoint`."""

    def __init__(self, *, path: str | Path, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.checkpoint_every_steps is {every_n_steps}: give 1 or more")
        self.path = Path(path)
        self.every_n_steps = every_n_steps
        self._saved_step = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._check_same_for_all_ranks(trainer)
        later = trainer.callbacks[trainer.callbacks.index(self) + 1 :]
        if any(isinstance(callback, BestCheckpoint) for callback in later):
            raise ValueError("callbacks: LastCheckpoint comes before BestCheckpoint, so a kill could lose a best: swap them")
        interval, accumulate = trainer.val_check_interval, trainer.accumulate_grad_batches
        counts_batches = isinstance(interval, int) and trainer.check_val_every_n_epoch is None
        if trainer.enable_validation and not counts_batches:
            raise ValueError(
                f"Trainer(val_check_interval={interval!r}, check_val_every_n_epoch={trainer.check_val_every_n_epoch!r}): "
                "give a whole number of batches and None, because a resumed run repeats no other interval"
            )
        if trainer.enable_validation and interval % accumulate:
            raise ValueError(
                f"validation every {interval} batches falls between two steps of {accumulate} batches each: give Lightning's "
                "val_check_interval in batches, a multiple of the batches per step"
            )

    def _check_same_for_all_ranks(self, trainer: pl.Trainer) -> None:
        """Raises ValueError if the ranks would resume from different steps and then wait for each other forever."""
        here = batches_seen(self.path if self.path.is_file() else None)
        first = trainer.strategy.broadcast(here)
        if not trainer.strategy.reduce_boolean_decision(here == first):
            raise ValueError(
                f"{self.path} is not the same file on all nodes (rank {trainer.global_rank} would resume after {here} batches, "
                f"rank 0 after {first}): set run_dir to a folder on a disk that all nodes share"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step
        for logger in trainer.loggers:
            if hasattr(logger, "take_back"):  # AppendingCSVLogger
                logger.take_back(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == trainer.max_steps and trainer.enable_validation:
            trainer.should_stop = True  # Lightning then validates the last step, whatever the interval is
        due = step % self.every_n_steps == 0 or step == trainer.max_steps
        if due and step > self._saved_step and not _validation_follows(trainer):
            self._save(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._save(trainer, pl_module)

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the logged rows first, because a run that resumes from this checkpoint will not write them again."""
        check_finite(pl_module)
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step = trainer.global_step


def check_finite(pl_module: pl.LightningModule) -> None:
    """Raises ValueError if a loss or weight is not finite, so that the previous checkpoint is kept."""
    if isinstance(watch := getattr(pl_module, "loss_watch", None), LossWatch):
        watch.check(pl_module)


def batches_seen(path: Path | None) -> int:
    """Returns the number of batches that a rank had seen when the checkpoint was written; 0 without a checkpoint."""
    if path is None:
        return 0
    loops = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["loops"]
    return int(loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"])


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Returns whether the loop validates after the batch that has just ended."""
    if not trainer.enable_validation:
        return False
    return trainer.should_stop or (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch == 0
