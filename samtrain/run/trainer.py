"""Lightning's Trainer for one training: its callbacks, its strategy, and how many micro-batches make a step."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import Strategy

from samtrain.data_engine.stages import FitRequest
from samtrain.run.settings import Config, read, recipe_of
from samtrain.run.targets import build
from samtrain.training.callbacks import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    MaskPanels,
    ParameterNorms,
    ProgressDisplay,
    Throughput,
)
from samtrain.training.config import CallbacksConfig, LoaderConfig, TrainerConfig
from samtrain.training.fsdp import EncoderFSDPStrategy
from samtrain.training.optim import OptimConfig


def make_callbacks(config: Config, request: FitRequest) -> list[Callback]:
    """Returns the callbacks in the order that they need: measure, then show, then write checkpoints."""
    settings, optim = read(CallbacksConfig, config, "callbacks"), read(OptimConfig, config, "optim")
    callbacks: list[Callback] = [Throughput()]
    if optim.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=optim.ema_decay, use_buffers=False))
    if settings.norms_every_steps is not None:
        callbacks.append(ParameterNorms(every_n_steps=settings.norms_every_steps))
    if settings.progress:
        callbacks.append(ProgressDisplay())
    if request.val and settings.panels:
        callbacks.append(MaskPanels(directory=request.directory / "panels", num_objects=settings.panels))
    # the user's come before the checkpoints, so that a checkpoint holds their state after the step
    callbacks += [build(node, f"callbacks.extra.{i}", of=Callback) for i, node in enumerate(settings.extra)]
    if request.val:
        callbacks.append(BestCheckpoint(path=request.best, monitor=settings.monitor))
    callbacks.append(LastCheckpoint(path=request.last, every_n_steps=settings.checkpoint_every_steps))
    return callbacks


def make_trainer(
    config: Config,
    directory: Path,
    callbacks: list[Callback],
    loggers: list[Logger],
    steps: int,
    model: str,
    *,
    validates: bool,
) -> pl.Trainer:
    """Returns a Trainer for `steps` optimiser steps, each of the recipe's number of images."""
    settings, display = read(TrainerConfig, config, "trainer"), read(CallbacksConfig, config, "callbacks")
    accumulate = micro_batches(config, model)
    return pl.Trainer(
        **placement(settings),
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy_of(settings, read(OptimConfig, config, "optim")),
        default_root_dir=directory,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=settings.gradient_clip_val,
        # Lightning counts batches, not steps
        val_check_interval=validation_interval(steps, settings.val_every_steps) * accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validates else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=display.log_every_steps,
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=display.progress,
        plugins=[AtomicCheckpointIO(), *_cluster()],
        **{key: _made(value) for key, value in settings.extra.items()},
    )


def make_validator(settings: TrainerConfig) -> pl.Trainer:
    """Returns a Trainer that only validates, on one device, and writes nothing."""
    return pl.Trainer(
        **placement(settings), devices=1, logger=False, callbacks=[], enable_checkpointing=False, enable_progress_bar=False
    )


def placement(settings: TrainerConfig) -> dict[str, Any]:
    """Returns the Trainer arguments that decide the numbers: where they are computed, how exactly, and in which order."""
    return {
        "accelerator": settings.accelerator,
        "precision": settings.precision,
        "deterministic": _deterministic(settings),
        "use_distributed_sampler": False,  # ours knows the rank
        "enable_model_summary": False,
    }


def strategy_of(settings: TrainerConfig, optim: OptimConfig) -> str | Strategy:
    """Returns what Lightning takes as strategy; raises ValueError for settings that do not work under FSDP."""
    if settings.strategy != "fsdp":
        return settings.strategy
    if settings.compile:
        raise ValueError(
            "trainer.compile is true and trainer.strategy is fsdp, under which each validation compiles for minutes (three "
            "minutes for two tiny images): set trainer.compile=false or trainer.strategy=ddp"
        )
    if optim.ema_decay is not None:
        raise ValueError(
            f"optim.ema_decay is {optim.ema_decay} and trainer.strategy is fsdp, but the average needs whole weights, which no "
            "rank holds: set optim.ema_decay=null or trainer.strategy=ddp"
        )
    return EncoderFSDPStrategy()


def micro_batches(config: Config, model: str) -> int:
    """Returns the number of micro-batches per step, which make up for missing devices.

    Raises ValueError if the images of a step cannot be split into whole micro-batches.
    """
    settings, loader = read(TrainerConfig, config, "trainer"), read(LoaderConfig, config, "loader")
    wanted = settings.images_per_step or recipe_of(config, model).images_per_step
    at_once = loader.batch_size * settings.num_devices
    if wanted % at_once:
        raise ValueError(
            f"trainer.images_per_step is {wanted}, which is not a multiple of the {at_once} images of one micro-batch "
            f"({settings.num_devices} devices times {loader.batch_size} images): set trainer.images_per_step, trainer.devices "
            "or loader.batch_size"
        )
    return wanted // at_once


def validation_interval(steps: int, wanted: int) -> int:
    """Returns the number of steps between validations: near `wanted`, so that the last step is validated once.

    A divisor of `steps` within a factor of two of `wanted` is taken if there is one. Otherwise the steps are shared out as
    evenly as whole numbers allow, and the last step is validated in addition (by `LastCheckpoint`): 401 steps have no
    divisor but 1 and themselves.
    """
    small = [n for n in range(1, math.isqrt(steps) + 1) if steps % n == 0]
    nearest = min(sorted({*small, *(steps // n for n in small)}), key=lambda n: max(n, wanted) / min(n, wanted))
    if wanted >= steps or wanted / 2 <= nearest <= wanted * 2:
        return nearest
    return math.ceil(steps / round(steps / wanted))


def _deterministic(settings: TrainerConfig) -> Any:
    """Returns what Lightning takes; by default true on the CPU, where it costs nothing."""
    if settings.deterministic is not None:
        return settings.deterministic
    return settings.accelerator == "cpu" or (settings.accelerator == "auto" and not torch.cuda.is_available())


def _cluster() -> list[ClusterEnvironment]:
    """Returns the environment for processes that srun started, and another for a shell or script inside of a SLURM job.

    SLURM or submitit requeue a job. If Lightning did, it would write a checkpoint of its own and prefer it to `last.ckpt`.
    """
    if not SLURMEnvironment.detect() or TorchElasticEnvironment.detect():
        return []
    if "SLURM_STEP_NUM_TASKS" not in os.environ:  # srun sets it; a shell has the tasks of its job, but is one process
        return [LightningEnvironment()]
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError(
            f"srun started {tasks} tasks, but not how many are on each node: give sbatch or srun --ntasks-per-node, with the "
            "number of trainer.devices, instead of --ntasks"
        )
    return [SLURMEnvironment(auto_requeue=False)]


def _made(value: Any) -> Any:
    """Returns an argument of `trainer.extra`; a node with `_target_` becomes its object."""
    return instantiate(value) if isinstance(value, dict) and "_target_" in value else value
