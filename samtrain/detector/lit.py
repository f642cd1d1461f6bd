"""The system that Lightning trains to find boxes: a detector, its optimiser, and what it is worth on whole images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from samtrain.data.box_samples import BoxBatch
from samtrain.detector.checkpoints import CONFIG_KEY
from samtrain.detector.model import Detector
from samtrain.metrics.boxes import COCO_SIZES, ImageBoxes, box_metrics
from samtrain.prompts import seeded_generator
from samtrain.training.optim import AdamWConfig, rate_factor

LAYERS = 11  # the stream of random numbers of a step: which anchors and proposals its losses are taken of
MAX_DETECTIONS = 100  # of a validation image (COCO)


@dataclass(frozen=True, kw_only=True)
class DetectorRecipe:
    """How a detector is trained: `steps` of `batch_size` images, AdamW, a rate that warms up and falls as a cosine.

    flip_probability: of exchanging left and right. max_mask_area: of the image; larger masks are no objects.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup_steps: int = 20
    gradient_clip_val: float = 1.0
    flip_probability: float = 0.5
    max_mask_area: float = 0.9

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"detector.{name} is {getattr(self, name)}: take a number above 0")


class LitDetector(pl.LightningModule):
    """Trains a detector; its state is the weights, the optimiser and the images seen.

    Which anchors and proposals a step draws is a function of (seed, step), so that a run continued from a checkpoint equals
    one that was never stopped.
    """

    def __init__(
        self,
        *,
        detector: Detector,
        recipe: DetectorRecipe,
        seed: int,
        size_limits: tuple[float, float] = COCO_SIZES,  # of small, medium and large in val/*
        log_every_steps: int = 1,
    ) -> None:
        super().__init__()
        self.detector, self.recipe, self.seed, self.size_limits = detector, recipe, seed, size_limits
        self.log_every_steps = log_every_steps
        self.images_seen = 0
        self._terms: dict[str, Tensor] = {}
        self._images: list[ImageBoxes] = []

    def training_step(self, batch: BoxBatch, batch_idx: int) -> Tensor:
        losses = self.detector.losses(batch.images, batch.boxes)
        total = torch.stack(list(losses.values())).sum()
        self.images_seen += len(batch.images)
        self._terms = {"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}
        self.log("train/loss", total.detach(), logger=False, batch_size=1)
        return total

    def on_train_batch_start(self, batch: BoxBatch, batch_idx: int) -> None:
        step = self.trainer.fit_loop.total_batch_idx  # counts over resumptions
        torch.manual_seed(seeded_generator("cpu", self.seed, LAYERS, step).initial_seed())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the step before any callback may write a checkpoint of it."""
        step = self.trainer.global_step + 1
        if step % self.log_every_steps and step != self.trainer.max_steps:
            return
        values = {f"train/{name.removeprefix('loss_')}": float(value) for name, value in self._terms.items()}
        if not math.isfinite(values["train/loss"]):
            raise ValueError(
                f"the detector's loss is {values['train/loss']} at step {step}: lower detector.learning_rate, clip the "
                "gradient (detector.gradient_clip_val) or train in another precision (trainer.precision)"
            )
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm, rate = float(nn.utils.get_total_norm(gradients)), optimizer.param_groups[0]["lr"]
        self._log_row({**values, "train/grad_norm": norm, "train/lr": rate}, step)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *settings: Any, **others: Any) -> None:
        """By norm, here: Lightning refuses fused optimisers under bf16-mixed, for a loss scaling that bfloat16 has not."""
        nn.utils.clip_grad_norm_([p for p in self.parameters() if p.grad is not None], self.recipe.gradient_clip_val)

    def _log_row(self, values: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics({**values, "images_seen": float(self.images_seen)}, step=step)

    def on_fit_start(self) -> None:
        if self.trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision is 16-mixed, whose loss scaling and fused optimisers exclude each other: "
                "take bf16-mixed, or 32-true"
            )

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        self._images = []

    def validation_step(self, batch: BoxBatch, batch_idx: int) -> None:
        for boxes, areas, (found, scores) in zip(batch.boxes, batch.areas, self.detector.find(batch.images), strict=True):
            columns = (boxes, areas, found[:MAX_DETECTIONS], scores[:MAX_DETECTIONS])
            self._images.append(ImageBoxes(*(column.cpu().numpy() for column in columns)))

    def on_validation_epoch_end(self) -> None:
        """COCO's numbers to the loggers and, for callbacks, to `trainer.callback_metrics`."""
        metrics = box_metrics(self._images, size_limits=self.size_limits)
        values = {f"val/{name}": value for name, value in metrics.items()}
        self.log_dict(values, logger=False)
        self._log_row(values, self.trainer.global_step)

    # ---- what Lightning asks for

    def configure_optimizers(self) -> Any:
        """AdamW without decay on what has one axis (norms and biases)."""
        trained = [p for p in self.detector.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=self.recipe.learning_rate, fused=True)
        shape = AdamWConfig(schedule="cosine", warmup_steps=self.recipe.warmup_steps)
        schedule = LambdaLR(optimizer, lambda step: rate_factor(shape, step, self.recipe.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self.detector.config.to_dict()
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError for a checkpoint of a detector of another config."""
        here, there = self.detector.config.to_dict(), checkpoint[CONFIG_KEY]
        if differences := [f"{k}: {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v]:
            raise ValueError(
                f"the checkpoint to go on from is of another detector ({'; '.join(differences)}): "
                "take the config it was begun with, or another run_dir"
            )
        self.images_seen = checkpoint["images_seen"]
