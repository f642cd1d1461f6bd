"""The settings of a training: the config nodes `trainer`, `loader` and `callbacks` as dataclasses that check themselves."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

import pytorch_lightning as pl

# what Lightning's Trainer takes as precision; LitSam refuses 16-mixed
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true", "64", "32", "16", "bf16")

# arguments of Lightning's Trainer that samtrain sets itself, and what to set instead
SET_BY_SAMTRAIN = {
    **{
        key: f"set trainer.{key}"
        for key in (
            "accelerator", "devices", "num_nodes", "strategy", "precision", "max_steps", "gradient_clip_val", "deterministic",
        )  # fmt: skip
    },
    "accumulate_grad_batches": "set trainer.images_per_step and loader.batch_size",
    "gradient_clip_algorithm": "gradients are clipped by their norm, set trainer.gradient_clip_val",
    "val_check_interval": "set trainer.val_every_steps",
    "check_val_every_n_epoch": "set trainer.val_every_steps",
    "limit_val_batches": "set data.val",
    "num_sanity_val_steps": "set trainer.val_every_steps",
    "log_every_n_steps": "set callbacks.log_every_steps",
    "enable_progress_bar": "set callbacks.progress",
    "enable_checkpointing": "set callbacks.checkpoint_every_steps",
    "callbacks": "set callbacks.extra",
    "logger": "set logger.extra",
    "default_root_dir": "set run_dir",
    **{key: "set trainer.max_steps" for key in ("max_epochs", "min_epochs", "min_steps", "max_time")},
    **{key: "leave it out" for key in ("plugins", "use_distributed_sampler", "enable_model_summary")},
}


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The `trainer` node: what a training runs on and for how long.

    extra: further arguments of Lightning's Trainer, passed on as they are
    """

    accelerator: str = "auto"
    devices: int | list[int] | str = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: str | int = "32-true"
    max_steps: int | None = None
    images_per_step: int | None = None
    launcher: str | None = None
    gradient_clip_val: float | None = None
    val_every_steps: int = 100
    val_resolution: Literal["input", "decoder"] = "input"
    deterministic: bool | Literal["warn"] | None = None
    activation_checkpointing: bool = False
    cache_embeddings: Literal["float16", "float32"] | None = None
    compile: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_nodes", "max_steps", "images_per_step", "val_every_steps"):
            _check_at_least(f"trainer.{name}", getattr(self, name), 1)
        _check_at_least("trainer.gradient_clip_val", self.gradient_clip_val, 0)
        if str(self.precision) not in PRECISIONS:
            raise ValueError(f"trainer.precision is {self.precision!r}: give one of {', '.join(PRECISIONS)}")
        if isinstance(self.devices, str) or self.devices in ([], 0) or (isinstance(self.devices, int) and self.devices < 0):
            raise ValueError(
                f"trainer.devices is {self.devices!r}: give a number of devices or a list of their indices, because the number "
                "of micro-batches per step follows from it"
            )
        if self.cache_embeddings is not None and self.strategy == "fsdp":
            raise ValueError("trainer.cache_embeddings needs the whole encoder on each device: set trainer.strategy=auto")
        self._check_extra()

    def _check_extra(self) -> None:
        """Raises ValueError for an argument that Lightning's Trainer does not have, or that samtrain sets itself."""
        for key in self.extra:
            if key in SET_BY_SAMTRAIN:
                raise ValueError(f"trainer.extra.{key} is set by samtrain itself: {SET_BY_SAMTRAIN[key]}")
            if not is_trainer_argument(key):
                free = [name for name in inspect.signature(pl.Trainer).parameters if name not in SET_BY_SAMTRAIN]
                raise ValueError(f"trainer.extra.{key} is no argument of Lightning's Trainer: choose from {', '.join(free)}")

    @property
    def num_devices(self) -> int:
        """The number of devices on all nodes together."""
        return (len(self.devices) if isinstance(self.devices, list) else int(self.devices)) * self.num_nodes


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """The `loader` node: how training and validation images are drawn, transformed and batched."""

    batch_size: int
    val_batch_size: int | None = None
    max_masks: int = 64
    max_val_masks: int = 64
    max_mask_area: float = 0.9
    min_mask_area: int = 1
    large_scale_jitter: list[float] | None = None
    flip_probability: float = 0.0
    train_images: int | None = None
    val_on_train: bool = False
    cache_images: bool = False
    reduced_jpeg: bool = False
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "val_batch_size", "max_masks", "max_val_masks", "min_mask_area", "train_images"):
            _check_at_least(f"loader.{name}", getattr(self, name), 1)
        _check_at_least("loader.num_workers", self.num_workers, 0)
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"loader.flip_probability is {self.flip_probability}: give a number from 0 to 1")
        if not 0 < self.max_mask_area <= 1:
            raise ValueError(f"loader.max_mask_area is {self.max_mask_area}: give a share of the image above 0, up to 1")


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig:
    """The `callbacks` node: what runs beside the training loop.

    extra: nodes with a `_target_`, each a Lightning callback
    """

    monitor: str = "val/miou_1"
    checkpoint_every_steps: int = 100
    log_every_steps: int = 10
    progress: bool = True
    panels: int = 0
    norms_every_steps: int | None = None
    extra: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_steps", "log_every_steps", "norms_every_steps"):
            _check_at_least(f"callbacks.{name}", getattr(self, name), 1)
        _check_at_least("callbacks.panels", self.panels, 0)


def is_trainer_argument(key: str) -> bool:
    """Returns whether Lightning's Trainer takes an argument of this name."""
    return key in inspect.signature(pl.Trainer).parameters


def _check_at_least(key: str, value: float | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{key} is {value}: give {least} or more")
