"""The system that Lightning trains: a detector, its optimiser, and its validation on whole images."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from samtrain.data.box_samples import BoxBatch
from samtrain.detector.checkpoints import CONFIG_KEY
from samtrain.detector.model import Detector
from samtrain.detector.recipe import DetectorRecipe
from samtrain.metrics.boxes import COCO_SIZES, ImageBoxes, box_metrics
from samtrain.prompts import seeded_generator
from samtrain.training.finite import LossWatch
from samtrain.training.optim import adamw_with_cosine

STREAM = 11  # of random numbers: which anchors and proposals a step computes its losses on
MAX_DETECTIONS = 100  # per validation image (COCO)


class LitDetector(pl.LightningModule):
    """Trains a detector; its state consists of the weights, the optimiser and the number of images seen.

    The anchors and proposals that a step draws are a function of (seed, step), so that a resumed run equals one that was
    never interrupted.

    size_limits: areas that separate small, medium and large objects in val/*
    """

    def __init__(
        self,
        *,
        detector: Detector,
        recipe: DetectorRecipe,
        seed: int,
        size_limits: tuple[float, float] = COCO_SIZES,
        log_every_steps: int = 1,
    ) -> None:
        super().__init__()
        self.detector, self.recipe, self.seed, self.size_limits = detector, recipe, seed, size_limits
        self.log_every_steps = log_every_steps
        self.images_seen = 0
        self.loss_watch = LossWatch(
            cure="lower detector.learning_rate or detector.gradient_clip_val or set another trainer.precision"
        )
        self._terms: dict[str, Tensor] = {}
        self._images: list[ImageBoxes] = []

    def training_step(self, batch: BoxBatch, batch_idx: int) -> Tensor:
        losses = self.detector.losses(batch.images, batch.boxes)
        total = torch.stack(list(losses.values())).sum()
        self.images_seen += len(batch.images)
        self._terms = {"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}
        self.loss_watch.add(self.trainer.global_step + 1, total, batch.keys)
        self.log("train/loss", total.detach(), logger=False, batch_size=1)
        return total

    def on_train_batch_start(self, batch: BoxBatch, batch_idx: int) -> None:
        step = self.trainer.fit_loop.total_batch_idx  # also counts the batches before a resume
        torch.manual_seed(seeded_generator("cpu", self.seed, STREAM, step).initial_seed())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the step; this hook runs before any callback can write a checkpoint of the step."""
        step = self.trainer.global_step + 1
        if step % self.log_every_steps and step != self.trainer.max_steps:
            return
        self.loss_watch.check(self, weights=False)
        values = {f"train/{name.removeprefix('loss_')}": float(value) for name, value in self._terms.items()}
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm, rate = float(nn.utils.get_total_norm(gradients)), optimizer.param_groups[0]["lr"]
        self._log_row({**values, "train/grad_norm": norm, "train/lr": rate}, step)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *settings: Any, **others: Any) -> None:
        """Clips by norm here, because Lightning refuses to clip for fused optimisers under bf16-mixed.

        Its reason, loss scaling, does not apply to bfloat16.
        """
        nn.utils.clip_grad_norm_([p for p in self.parameters() if p.grad is not None], self.recipe.gradient_clip_val)

    def _log_row(self, values: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics({**values, "images_seen": float(self.images_seen)}, step=step)

    def on_fit_start(self) -> None:
        if self.trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision is 16-mixed, but its loss scaling does not work with a fused optimiser: choose bf16-mixed "
                "or 32-true"
            )

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        self._images = []

    def validation_step(self, batch: BoxBatch, batch_idx: int) -> None:
        for boxes, areas, (found, scores) in zip(batch.boxes, batch.areas, self.detector.find(batch.images), strict=True):
            columns = (boxes, areas, found[:MAX_DETECTIONS], scores[:MAX_DETECTIONS])
            self._images.append(ImageBoxes(*(column.cpu().numpy() for column in columns)))

    def on_validation_epoch_end(self) -> None:
        """Logs COCO's metrics to the loggers and, for callbacks, to `trainer.callback_metrics`."""
        metrics = box_metrics(self._images, size_limits=self.size_limits)
        values = {f"val/{name}": value for name, value in metrics.items()}
        self.log_dict(values, logger=False)
        self._log_row(values, self.trainer.global_step)

    # ---- optimiser and checkpoints

    def configure_optimizers(self) -> Any:
        """Returns AdamW without weight decay on parameters with one axis (norms and biases), and its schedule."""
        recipe = self.recipe
        return adamw_with_cosine(
            self.detector,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup_steps,
            steps=recipe.steps,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self.detector.config.to_dict()
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError for a checkpoint of a detector of another config."""
        here, there = self.detector.config.to_dict(), checkpoint[CONFIG_KEY]
        if differences := [f"{k}: {there.get(k)} in the checkpoint, {v} now" for k, v in here.items() if there.get(k) != v]:
            raise ValueError(
                f"the checkpoint to resume from is of another detector ({'; '.join(differences)}): "
                "give the settings that the run was started with, or another run_dir"
            )
        self.images_seen = checkpoint["images_seen"]
