"""The LightningModule: a Sam with its prompt sampler, its loss and its optimiser."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from samtrain.interact import BatchDecoder, Interaction, interact, interaction_losses, loss_with_flat_memory
from samtrain.losses import LossTerms, SamLoss
from samtrain.modeling.lora import KEY as LORA
from samtrain.modeling.lora import add_lora, differences, from_differences, merged, unmerged
from samtrain.modeling.sam import Sam, SamConfig
from samtrain.ops.masks import mask_iou, shrink_masks
from samtrain.prompts import CentreSampler, Sampler, seeded_generator
from samtrain.training.embedding_cache import EmbeddingCache
from samtrain.training.finite import LossWatch
from samtrain.training.optim import AdamWConfig, LoraConfig, build_optimizer, clip_gradients, gradient_norm, scale_gradients
from samtrain.types import Batch

CLICKS = (1, 2, 3, 5)  # numbers of clicks after which validation measures IoU
ORACLE, BOX = "val/oracle_miou_1", "val/box_miou"
METRICS = (*(f"val/miou_{n}" for n in CLICKS), ORACLE, BOX)

# random streams of a step; each is a function of (seed, stream, step, rank)
PROMPTS, SCHEDULE, LAYERS, VALIDATION = range(1, 5)


class LitSam(pl.LightningModule):
    """Trains a Sam as the paper does, and validates it by clicks at the centre of the error.

    `sampler_of` says who prompts a batch, and `measure` what validation measures: `LitTextSam` has others.

    Its state is the weights, the optimiser and two counts. Every random draw is a function of (seed, micro-batch, rank), so a
    resumed run equals one that was never stopped. Lightning's callback ``EMAWeightAveraging(use_buffers=False)`` averages the
    weights: validation and the ``state_dict`` of checkpoints then hold the average.
    """

    metrics: tuple[str, ...] = METRICS  # what validation measures

    def __init__(
        self,
        *,
        sam: Sam,
        prompts: Sampler,
        loss: SamLoss,
        optim: AdamWConfig,
        seed: int,
        trainable: Sequence[str] = ("*",),  # globs of parameter names; the others are frozen
        activation_checkpointing: bool = False,
        compile_encoder: bool = False,
        images_seen: int = 0,  # in earlier rounds of an engine
        val_resolution: str = "input",  # or "decoder": IoUs on the decoder's grid, without upsampling
        embedding_cache: EmbeddingCache | None = None,  # of a frozen encoder
        lora: LoraConfig | None = None,  # differences of low rank to frozen layers, which train beside `trainable`
    ) -> None:
        super().__init__()
        if val_resolution not in ("input", "decoder"):
            raise ValueError(f"trainer.val_resolution is {val_resolution!r}: give input or decoder")
        self.val_resolution = val_resolution
        freeze(sam, trainable)
        self.lora = lora
        if lora is not None:
            add_lora(sam, lora.layers, rank=lora.rank, alpha=lora.alpha, seed=seed)
        sam.image_encoder.set_grad_checkpointing(activation_checkpointing)
        if compile_encoder:
            sam.image_encoder.compile()  # in place: the state_dict keeps its keys
        self.sam, self.prompts, self.loss, self.optim, self.seed = sam, prompts, loss, optim, seed
        self.images_seen = images_seen
        self.masks_seen: Tensor | int = 0
        self.waiting_since = time.perf_counter()  # since when the loop has waited for the data loader
        self.loss_watch = LossWatch(
            cure="lower optim.learning_rate_factor or trainer.gradient_clip_val or set another trainer.precision"
        )
        self._terms: list[Tensor] = []  # of the step's micro-batches
        self._objects: list[Tensor] = []
        self._sums = torch.zeros(len(self.metrics), 2)  # of IoUs and of weights
        self._encoder_trains = any(p.requires_grad for p in sam.image_encoder.parameters())
        self._embedding_cache = embedding_cache
        if embedding_cache is not None and self._encoder_trains:
            raise ValueError(
                "trainer.cache_embeddings is set and the image encoder trains, so its embeddings change at every step: set "
                "trainer.cache_embeddings=null, or optim.trainable to parts other than image_encoder, such as [mask_decoder.*]"
            )

    # ---- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a micro-batch over all its interactions; their gradients are computed on the way.

        The loss is a mean over the micro-batch's objects on all ranks. Of several micro-batches each is multiplied by its
        number of objects, and `on_before_optimizer_step` divides by the number of the whole step: an object then weighs the
        same, however the step is split.
        """
        # what is drawn at random, and over how many objects the loss is averaged
        step = self.micro_batch
        schedule = self.prompts.schedule(seeded_generator("cpu", self.seed, SCHEDULE, step))  # the same on all ranks
        generator = seeded_generator(self.device, self.seed, PROMPTS, step, self.global_rank)
        mean_objects = self.trainer.strategy.reduce(batch.weights.sum(), reduce_op="mean")
        sampler = self.sampler_of(batch, step)

        def losses(embeddings: Tensor) -> Any:
            return interaction_losses(
                self.sam,
                embeddings,
                batch,
                sampler,
                self.loss,
                schedule=schedule,
                generator=generator,
                num_objects=torch.where(mean_objects > 0, mean_objects, 1.0),
            )

        # encode once, then prompt and decode interaction by interaction
        total, log = loss_with_flat_memory(self.sam, self.encode(batch), losses)
        self._count(batch, mean_objects)
        self._terms.append(_stack(total, [terms for _, terms in log]))
        self._objects.append(mean_objects)
        self.loss_watch.add(self.trainer.global_step + 1, total, batch.keys)
        self.log("train/loss", total.detach(), logger=False, batch_size=1)
        return total * mean_objects if self.trainer.accumulate_grad_batches > 1 else total

    def sampler_of(self, batch: Batch, step: int) -> Sampler:
        """Returns who prompts the objects of a training batch."""
        return self.prompts

    def encode(self, batch: Batch) -> Tensor:
        """Returns (B, C, g, g) image embeddings; a frozen encoder stores nothing for a backward pass."""
        if self._encoder_trains:
            return self.sam.encode(self.sam.preprocess(batch.images, batch.input_sizes))
        # one by one, because the last bits of an embedding depend on the images beside it, and the cache knows each one alone
        rows = [slice(i, i + 1) for i in range(len(batch.images))]
        with torch.no_grad():
            return torch.cat([self._encode_frozen(batch.images[row], batch.input_sizes[row]) for row in rows])

    def _encode_frozen(self, images_13SS: Tensor, input_sizes_12: Tensor) -> Tensor:
        """Returns (1, C, g, g), from the cache if there is one."""

        def encode() -> Tensor:
            return self.sam.encode(self.sam.preprocess(images_13SS, input_sizes_12))

        if self._embedding_cache is None:
            return encode()
        return self._embedding_cache.get(self.sam, images_13SS[0], input_sizes_12[0], encode)

    @property
    def micro_batch(self) -> int:
        """Returns the number of batches before this one, earlier processes included; random draws depend on it."""
        return self.trainer.fit_loop.total_batch_idx

    def on_fit_start(self) -> None:
        if self.trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision is 16-mixed, but gradients are computed inside the step, where float16 has no loss scaling: "
                "set trainer.precision=bf16-mixed or 32-true"
            )

    def on_train_start(self) -> None:
        self.train()  # not earlier, because Lightning would warn of frozen parts in eval mode
        self._terms, self._objects = [], []
        self.waiting_since = time.perf_counter()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Returns the batch on the device; a GPU copies it while it still computes the step before."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._seed_layers(LAYERS, self.micro_batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Finishes the mean over the step's objects, and logs the step before a callback can write a checkpoint of it."""
        step, every = self.trainer.global_step + 1, self.trainer.log_every_n_steps
        terms, objects = torch.stack(self._terms), torch.stack(self._objects)
        self._terms, self._objects = [], []
        total = objects.sum().clamp(min=1 / self.trainer.world_size)  # 1 object on one rank is the least there can be
        if len(objects) > 1:
            scale_gradients(_parameters(optimizer), len(objects) / total)  # Lightning has divided by the micro-batches
        terms = (terms * (objects / total)[:, None]).sum(dim=0)
        if step % every == 0 or step == self.trainer.max_steps:
            self._log_step(step, self.trainer.strategy.reduce(terms, reduce_op="mean"), optimizer)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by norm; Lightning itself refuses fused optimisers under bf16-mixed, for a loss scaling that is not used."""
        if gradient_clip_val:
            clip_gradients(_parameters(optimizer), gradient_clip_val)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.waiting_since = time.perf_counter()

    def train(self, mode: bool = True) -> LitSam:
        """Sets training mode; parts that are entirely frozen stay in evaluation mode, without dropout or drop path."""
        super().train(mode)
        for part in self.sam.children():
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def _count(self, batch: Batch, mean_objects: Tensor) -> None:
        self.images_seen += len(batch.images) * self.trainer.world_size
        self.masks_seen = self.masks_seen + (mean_objects * self.trainer.world_size).round().long()

    def _log_step(self, step: int, terms: Tensor, optimizer: torch.optim.Optimizer) -> None:
        self.loss_watch.check(self, weights=False)
        norm = gradient_norm(_parameters(optimizer))
        loss, *parts = terms.tolist()
        num = len(parts) // 3
        names = [f"train/{term}_{i}" for i in range(num) for term in ("focal", "dice", "iou")]
        rate = optimizer.param_groups[0]["lr"]  # param_groups puts the full rate first
        values = {"train/loss": loss, **dict(zip(names, parts, strict=True))}
        self.log_row({**values, "train/grad_norm": float(norm), "train/lr": rate}, step)

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Writes scalars of one step to all loggers, with the images and masks seen.

        `self.log` would be too late for a checkpoint that is written at the end of the batch.
        """
        row = {**values, "images_seen": float(self.images_seen), "masks_seen": float(self.masks_seen)}
        for logger in self.loggers:
            logger.log_metrics(row, step=step)

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        self._seed_layers(VALIDATION, self.trainer.global_step)
        self._sums = torch.zeros(len(self.metrics), 2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Interaction]:
        """Adds up IoUs without the padding, and returns the interactions by clicks, which MaskPanels draws."""
        valid = batch.valid().index_select(0, batch.image_index)
        return self.measure(BatchDecoder(self.sam, self.encode(batch), batch), batch, valid)

    def measure(self, decoder: BatchDecoder, batch: Batch, valid: Tensor) -> list[Interaction]:
        """Adds up the IoUs of a batch, and returns the interactions by clicks."""
        clicks = self._interact(decoder, batch, valid, CentreSampler(num_points=max(CLICKS)))
        box = self._interact(decoder, batch, valid, CentreSampler(num_points=1, first="box"))[0]
        iou = self._iou_with(decoder, batch.masks, valid)
        for turn in clicks:
            if turn.index + 1 in CLICKS:
                self._add(f"val/miou_{turn.index + 1}", iou(turn.low_res_logits), batch)
        each = [iou(logits[:, None]) for logits in clicks[0].output.low_res_logits.unbind(dim=1)]
        self._add(ORACLE, torch.stack(each).amax(dim=0), batch)  # an oracle chooses the best of the three masks
        self._add(BOX, iou(box.low_res_logits), batch)
        return clicks

    def _iou_with(self, decoder: BatchDecoder, masks: Tensor, valid: Tensor) -> Callable[[Tensor], Tensor]:
        """Returns a function from (N, 1, h, w) logits to (N,) IoUs in the input frame, or on the decoder's grid."""
        if self.val_resolution == "input":
            return lambda logits: mask_iou(decoder.to_frame(logits)[:, 0] > 0, masks, valid)
        masks, valid = shrink_masks(masks, valid, self.sam.config.mask_size)
        return lambda logits: mask_iou(logits[:, 0] > 0, masks, valid)

    def on_validation_epoch_end(self) -> None:
        """Logs means over all objects of all ranks; callbacks find them in `trainer.callback_metrics`."""
        sums = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        means = dict(zip(self.metrics, (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist(), strict=True))
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
        self._sums[self.metrics.index(name)] += sums

    # ---- optimiser and checkpoints

    def configure_optimizers(self) -> Any:
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else self.optim.max_steps
        optimizer, schedule = build_optimizer(self.sam, self.optim, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sam_config"] = self.sam.config.to_dict()
        checkpoint["images_seen"], checkpoint["masks_seen"] = self.images_seen, int(self.masks_seen)

        if self.lora is not None:
            # whoever loads the checkpoint gets a model that needs no LoRA
            checkpoint["state_dict"] = {f"sam.{key}": value for key, value in merged(self.sam).items()}
            checkpoint[LORA] = {"rank": self.lora.rank, "alpha": self.lora.alpha, "differences": differences(self.sam)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counts; raises ValueError for a checkpoint of another model."""
        if self.lora is not None:
            found = unmerged(self.sam, {key.removeprefix("sam."): value for key, value in checkpoint["state_dict"].items()})
            found |= from_differences(checkpoint[LORA]["differences"])
            checkpoint["state_dict"] = {f"sam.{key}": value for key, value in found.items()}
        here, there = self.sam.config.to_dict(), SamConfig.from_dict(checkpoint["sam_config"]).to_dict()
        if differences := [f"{k}: {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v]:
            raise ValueError(
                f"the checkpoint to resume from has another model ({'; '.join(differences)}): give the config that the run was "
                "started with, or set another run_dir"
            )
        self.images_seen, self.masks_seen = checkpoint["images_seen"], checkpoint["masks_seen"]

    def _seed_layers(self, stream: int, number: int) -> None:
        """Seeds PyTorch's global generators, which dropout and drop path draw from."""
        torch.manual_seed(seeded_generator("cpu", self.seed, stream, number, self.global_rank).initial_seed())


def freeze(sam: nn.Module, trainable: Sequence[str]) -> None:
    """Freezes all parameters that no glob matches; raises ValueError for a glob that matches none."""
    names = [name for name, _ in sam.named_parameters()]
    for glob in trainable:
        if not any(fnmatchcase(name, glob) for name in names):
            parts = ", ".join(f"{name}.*" for name, _ in sam.named_children())
            raise ValueError(f"optim.trainable contains {glob!r}, which matches no parameter: give globs such as {parts}")
    if not trainable:
        raise ValueError("optim.trainable is empty, so nothing would train: give globs of parameter names, or null for all")
    for name, parameter in sam.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, glob) for glob in trainable))


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _stack(total: Tensor, terms: list[LossTerms]) -> Tensor:
    """Returns one tensor: the loss, then focal, dice and IoU error of each interaction."""
    return torch.stack([total.detach(), *(value.float() for t in terms for value in (t.focal, t.dice, t.iou))])
