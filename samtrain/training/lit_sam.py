"""The system that Lightning trains: a Sam, who prompts it, its loss and its optimiser."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from samtrain.interact import BatchDecoder, Interaction, interact, interaction_losses, loss_with_flat_memory
from samtrain.losses import LossTerms, SamLoss
from samtrain.modeling.sam import Sam
from samtrain.ops.masks import mask_iou, shrink_masks
from samtrain.prompts import CentreSampler, Sampler, seeded_generator
from samtrain.training.optim import AdamWConfig, build_optimizer, clip_gradients, gradient_norm
from samtrain.types import Batch

CLICKS = (1, 2, 3, 5)  # what validation reports of the centre protocol
ORACLE, BOX = "val/oracle_miou_1", "val/box_miou"
METRICS = (*(f"val/miou_{n}" for n in CLICKS), ORACLE, BOX)

# streams of random numbers that a training step has, each a function of (seed, stream, step and rank)
PROMPTS, SCHEDULE, LAYERS, VALIDATION = range(1, 5)


class LitSam(pl.LightningModule):
    """Trains a Sam as the paper does, and measures it by clicks at the centre of the error.

    Its state is the weights, the optimiser and two counts: every random draw is a function of (seed, micro-batch, rank), so
    that a run continued from a checkpoint equals one that was never stopped. A weight average is Lightning's callback
    ``EMAWeightAveraging(use_buffers=False)``: validation and the ``state_dict`` of checkpoints are then the average.
    """

    def __init__(
        self,
        *,
        sam: Sam,
        prompts: Sampler,
        loss: SamLoss,
        optim: AdamWConfig,
        seed: int,
        trainable: Sequence[str] = ("*",),  # globs of parameter names, "mask_decoder.*"; the others are frozen
        activation_checkpointing: bool = False,
        compile_encoder: bool = False,
        images_seen: int = 0,  # before this run, by earlier rounds of an engine
        val_resolution: str = "input",  # or "decoder": IoUs on its grid, what the model itself draws
    ) -> None:
        super().__init__()
        if val_resolution not in ("input", "decoder"):
            raise ValueError(f"trainer.val_resolution is {val_resolution!r}: take 'input' or 'decoder'")
        self.val_resolution = val_resolution
        freeze(sam, trainable)
        sam.image_encoder.set_grad_checkpointing(activation_checkpointing)
        if compile_encoder:
            sam.image_encoder.compile()  # in place: the state_dict keeps its keys
        self.sam, self.prompts, self.loss, self.optim, self.seed = sam, prompts, loss, optim, seed
        self.images_seen = images_seen
        self.masks_seen: Tensor | int = 0
        self.waiting_since = time.perf_counter()  # when the loop last turned to the data loader
        self._terms: list[Tensor] = []
        self._sums = torch.zeros(len(METRICS), 2)  # of IoUs and of weights
        self._encoder_trains = any(p.requires_grad for p in sam.image_encoder.parameters())

    # ---- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a micro-batch over all its interactions; their gradients are taken on the way."""
        step = self.micro_batch
        schedule = self.prompts.schedule(seeded_generator("cpu", self.seed, SCHEDULE, step))  # equal on all ranks
        generator = seeded_generator(self.device, self.seed, PROMPTS, step, self.global_rank)
        mean_objects = self.trainer.strategy.reduce(batch.weights.sum(), reduce_op="mean")

        def losses(embeddings: Tensor) -> Any:
            return interaction_losses(
                self.sam,
                embeddings,
                batch,
                self.prompts,
                self.loss,
                schedule=schedule,
                generator=generator,
                num_objects=mean_objects.clamp(min=1),
            )

        total, log = loss_with_flat_memory(self.sam, self.encode(batch), losses)
        self._count(batch, mean_objects)
        self._terms.append(_stack(total, [terms for _, terms in log]))
        self.log("train/loss", total.detach(), logger=False, batch_size=1)
        return total

    def encode(self, batch: Batch) -> Tensor:
        """(B, C, g, g) image embeddings; a frozen encoder leaves nothing behind for a backward pass."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._encoder_trains):
            return self.sam.encode(self.sam.preprocess(batch.images, batch.input_sizes))

    @property
    def micro_batch(self) -> int:
        """How many batches came before the present one, over resumptions: what random draws hang on."""
        return self.trainer.fit_loop.total_batch_idx

    def on_fit_start(self) -> None:
        if self.trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision is 16-mixed: gradients are taken inside the step, where float16 has no loss scaling; "
                "take bf16-mixed, or 32-true"
            )

    def on_train_start(self) -> None:
        self.train()  # here and not earlier, or Lightning warns of the frozen parts in eval mode
        self._terms = []
        self.waiting_since = time.perf_counter()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._seed_layers(LAYERS, self.micro_batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the step while its gradients are there, and before any callback may write a checkpoint of it."""
        step, every = self.trainer.global_step + 1, self.trainer.log_every_n_steps
        terms, self._terms = torch.stack(self._terms).mean(dim=0), []
        if step % every == 0 or step == self.trainer.max_steps:
            self._log_step(step, self.trainer.strategy.reduce(terms, reduce_op="mean"), optimizer)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By norm, here: Lightning refuses fused optimisers under bf16-mixed, for a loss scaling that bfloat16 has not."""
        if gradient_clip_val:
            clip_gradients(_parameters(optimizer), gradient_clip_val)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.waiting_since = time.perf_counter()

    def train(self, mode: bool = True) -> LitSam:
        """Training mode for what trains; parts that are frozen whole keep to evaluation, without dropout or drop path."""
        super().train(mode)
        for part in self.sam.children():
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def _count(self, batch: Batch, mean_objects: Tensor) -> None:
        self.images_seen += len(batch.images) * self.trainer.world_size
        self.masks_seen = self.masks_seen + (mean_objects * self.trainer.world_size).round().long()

    def _log_step(self, step: int, terms: Tensor, optimizer: torch.optim.Optimizer) -> None:
        norm = gradient_norm(_parameters(optimizer))
        loss, *parts = terms.tolist()
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {step}: lower the rate (optim.learning_rate_factor), clip the gradient "
                "(trainer.gradient_clip_val) or train in another precision (trainer.precision)"
            )
        num = len(parts) // 3
        names = [f"train/{term}_{i}" for i in range(num) for term in ("focal", "dice", "iou")]
        rate = optimizer.param_groups[0]["lr"]  # of the full rate: param_groups puts it first
        values = {"train/loss": loss, **dict(zip(names, parts, strict=True))}
        self.log_row({**values, "train/grad_norm": float(norm), "train/lr": rate}, step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Write scalars of one step to all loggers, at once and beside the images seen: `self.log` would come too late
        for a checkpoint that is written at the end of the batch."""
        row = {**values, "images_seen": float(self.images_seen), "masks_seen": float(self.masks_seen)}
        for logger in self.loggers:
            logger.log_metrics(row, step=step)

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        self._seed_layers(VALIDATION, self.trainer.global_step)
        self._sums = torch.zeros(len(METRICS), 2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Interaction]:
        """Adds up IoUs without the padding, and returns the interactions of the clicks (for panels)."""
        decoder = BatchDecoder(self.sam, self.encode(batch), batch)
        valid = batch.valid().index_select(0, batch.image_index)
        clicks = self._interact(decoder, batch, valid, CentreSampler(num_points=max(CLICKS)))
        box = self._interact(decoder, batch, valid, CentreSampler(num_points=1, first="box"))[0]
        iou = self._iou_with(decoder, batch.masks, valid)
        for turn in clicks:
            if turn.index + 1 in CLICKS:
                self._add(f"val/miou_{turn.index + 1}", iou(turn.low_res_logits), batch)
        each = [iou(logits[:, None]) for logits in clicks[0].output.low_res_logits.unbind(dim=1)]
        self._add(ORACLE, torch.stack(each).amax(dim=0), batch)  # the best of the three, as an oracle would choose
        self._add(BOX, iou(box.low_res_logits), batch)
        return clicks

    def _iou_with(self, decoder: BatchDecoder, masks: Tensor, valid: Tensor) -> Callable[[Tensor], Tensor]:
        """What turns (N, 1, h, w) logits into (N,) IoUs in the input frame, or on the decoder's grid."""
        if self.val_resolution == "input":
            return lambda logits: mask_iou(decoder.to_frame(logits)[:, 0] > 0, masks, valid)
        masks, valid = (shrink_masks(each, self.sam.config.mask_size) for each in (masks, valid))
        return lambda logits: mask_iou(logits[:, 0] > 0, masks, valid)

    def on_validation_epoch_end(self) -> None:
        """Means over all objects of all ranks, to the loggers and, for callbacks, to `trainer.callback_metrics`."""
        sums = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        means = dict(zip(METRICS, (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist(), strict=True))
        self.log_dict(means, logger=False, rank_zero_only=False)
        if not self.trainer.sanity_checking:
            self.log_row(means, self.trainer.global_step)

    def on_validation_end(self) -> None:
        self.waiting_since = time.perf_counter()

    def _interact(self, decoder: BatchDecoder, batch: Batch, valid: Tensor, sampler: CentreSampler) -> list[Interaction]:
        generator = torch.Generator()  # the centre protocol draws nothing
        schedule = sampler.schedule(generator)
        return list(interact(decoder, batch.masks, sampler, schedule=schedule, valid_NHW=valid, generator=generator))

    def _add(self, name: str, values_N: Tensor, batch: Batch) -> None:
        sums = torch.stack([(values_N * batch.weights).sum(), batch.weights.sum()])
        self._sums[METRICS.index(name)] += sums

    # ---- what Lightning asks for

    def configure_optimizers(self) -> Any:
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else self.optim.max_steps
        optimizer, schedule = build_optimizer(self.sam, self.optim, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sam_config"] = self.sam.config.to_dict()
        checkpoint["images_seen"], checkpoint["masks_seen"] = self.images_seen, int(self.masks_seen)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError for a checkpoint of a model of other sizes."""
        here, there = self.sam.config.to_dict(), checkpoint["sam_config"]
        if differences := [f"{k}: {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v]:
            raise ValueError(
                f"the checkpoint to go on from is of another model ({'; '.join(differences)}): "
                "take the config it was begun with, or another run_dir"
            )
        self.images_seen, self.masks_seen = checkpoint["images_seen"], checkpoint["masks_seen"]

    def _seed_layers(self, stream: int, number: int) -> None:
        """Dropout, drop path and whatever else draws from PyTorch's own generators."""
        torch.manual_seed(seeded_generator("cpu", self.seed, stream, number, self.global_rank).initial_seed())


def freeze(sam: nn.Module, trainable: Sequence[str]) -> None:
    """Only parameters whose name one of the globs matches keep a gradient; ValueError for a glob that matches none."""
    names = [name for name, _ in sam.named_parameters()]
    for glob in trainable:
        if not any(fnmatchcase(name, glob) for name in names):
            parts = ", ".join(f"{name}.*" for name, _ in sam.named_children())
            raise ValueError(f"optim.trainable names {glob!r}, which no parameter matches: take globs such as {parts}")
    if not trainable:
        raise ValueError("optim.trainable is empty, so nothing would train: name a part, or null for all")
    for name, parameter in sam.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, glob) for glob in trainable))


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _stack(total: Tensor, terms: list[LossTerms]) -> Tensor:
    """The loss, then focal, dice and IoU error of each interaction."""
    return torch.stack([total.detach(), *(value.float() for t in terms for value in (t.focal, t.dice, t.iou))])
