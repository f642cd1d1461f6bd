"""One training: what `task=fit` does once and `task=rounds` once a round."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import Strategy

from samtrain.data.datasets import Source
from samtrain.data_engine.stages import FitRequest, FitResult
from samtrain.files import atomic_path
from samtrain.modeling.build import load_sam
from samtrain.modeling.sam import Sam
from samtrain.run.build import (
    Config,
    make_loss,
    make_prompts,
    make_sam,
    optim_config,
    recipe_of,
    transforms_of,
)
from samtrain.training.callbacks import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    MaskPanels,
    ParameterNorms,
    ProgressDisplay,
    Throughput,
    batches_seen,
)
from samtrain.training.datamodule import SamDataModule
from samtrain.training.fsdp import EncoderFSDPStrategy
from samtrain.training.lit_sam import LitSam

STRATEGIES = ("auto", "ddp", "fsdp")

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # which devices there are, what else one could install
warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode")  # frozen ones, and all until it begins
warnings.filterwarnings("ignore", message=r".*sync_dist=True")  # what is logged is of all ranks already
warnings.filterwarnings("ignore", message=r".*LeafSpec")  # Lightning 2.6 on torch 2.15


def train(config: Config, request: FitRequest, loggers: list[Logger]) -> FitResult:
    """Train, or go on from `checkpoints/last.ckpt`; afterwards `best.ckpt` and `last.ckpt` lie in the directory."""
    begin = time.perf_counter()
    sam = make_sam(config, model=request.model, init=request.init, key=request.model_key)
    model, size = sam.config.model, sam.config.image_size
    steps = request.steps or recipe_of(config, model)["max_steps"]
    resume = request.last if request.last.is_file() else None
    lit = _lit_sam(config, request, sam)
    data = _data(
        config,
        train=request.train,
        val=request.val,
        image_size=size,
        native=request.native,
        jitter=request.large_scale_jitter,
        start_step=batches_seen(resume),
    )
    callbacks = make_callbacks(config, request)
    trainer = make_trainer(config, request.directory, callbacks, loggers, steps, model, validates=bool(request.val))
    log.info("training %s for %d steps in %s%s", model, steps, request.directory, ", going on" if resume else "")
    trainer.fit(lit, datamodule=data, ckpt_path=resume)
    for logger in loggers:
        logger.save()

    # without images to choose by, the last is the best
    best = next((c for c in callbacks if isinstance(c, BestCheckpoint)), None)
    if trainer.is_global_zero and not request.best.is_file():
        with atomic_path(request.best) as whole:
            shutil.copyfile(request.last, whole)
    return FitResult(
        checkpoint=request.best,
        last=request.last,
        metrics=best.scores if best else {},
        images_seen=lit.images_seen,
        seconds=time.perf_counter() - begin,
    )


def validate(config: Config, checkpoint: Path, val: list[str], *, native: bool) -> dict[str, float]:
    """`val/*` of a checkpoint, as training itself measures them."""
    sam = load_sam(checkpoint)
    lit = LitSam(
        sam=sam,
        prompts=make_prompts(config),
        loss=make_loss(config),
        optim=optim_config(config, sam.config.model, 0.0),
        seed=config["seed"],
        val_resolution=config["trainer"]["val_resolution"],
    )
    data = _data(config, train=[], val=val, image_size=sam.config.image_size, native=native)
    settings = config["trainer"]
    trainer = pl.Trainer(
        accelerator=settings["accelerator"],
        devices=1,
        precision=settings["precision"],
        deterministic=_deterministic(config),
        logger=False,
        callbacks=[],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.validate(lit, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _lit_sam(config: Config, request: FitRequest, sam: Sam) -> LitSam:
    optim, trainer = config["optim"], config["trainer"]
    rate = recipe_of(config, sam.config.model)["learning_rate"] if request.learning_rate is None else request.learning_rate
    return LitSam(
        sam=sam,
        prompts=make_prompts(config),
        loss=make_loss(config),
        optim=optim_config(config, sam.config.model, rate),
        seed=config["seed"],
        trainable=["*"] if optim["trainable"] is None else optim["trainable"],
        activation_checkpointing=trainer["activation_checkpointing"],
        compile_encoder=trainer["compile"],
        images_seen=request.images_seen,
        val_resolution=trainer["val_resolution"],
    )


def _data(
    config: Config,
    *,
    train: list[Source],
    val: list[str],
    image_size: int,
    native: bool,
    jitter: list[float] | None = None,
    start_step: int = 0,
) -> SamDataModule:
    loader, data = config["loader"], config["data"]
    for_training, for_validation = transforms_of(config, image_size=image_size, native=native, jitter=jitter)
    names = ("batch_size", "val_batch_size", "max_masks", "max_val_masks", "num_workers", "cache_images", "reduced_jpeg")
    return SamDataModule(
        train=train,
        val=val,
        train_transform=for_training,
        val_transform=for_validation,
        **{name: loader[name] for name in names},
        seed=config["seed"],
        start_step=start_step,
        on_error=data["on_error"],
        allow_pipe=data.get("allow_pipe", False),
    )


def make_callbacks(config: Config, request: FitRequest) -> list[Callback]:
    """In the order that they need: a kill loses no best checkpoint, speeds are there when they are shown."""
    settings, ema_decay = config["callbacks"], config["optim"]["ema_decay"]
    callbacks: list[Callback] = [Throughput()]
    if ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=ema_decay, use_buffers=False))
    if settings["norms_every_steps"] is not None:
        callbacks.append(ParameterNorms(every_n_steps=settings["norms_every_steps"]))
    if settings["progress"]:
        callbacks.append(ProgressDisplay())
    if request.val:
        if settings["panels"]:
            callbacks.append(MaskPanels(directory=request.directory / "panels", num_objects=settings["panels"]))
        callbacks.append(BestCheckpoint(path=request.best, monitor=settings["monitor"]))
    callbacks.append(LastCheckpoint(path=request.last, every_n_steps=settings["checkpoint_every_steps"]))
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
    """Lightning's Trainer for `steps` optimiser steps of the recipe's number of images."""
    settings = config["trainer"]
    accumulate = micro_batches(config, model)
    return pl.Trainer(
        **{key: settings[key] for key in ("accelerator", "devices", "num_nodes", "precision")},
        strategy=strategy_of(config),
        default_root_dir=directory,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=settings["gradient_clip_val"],
        val_check_interval=validation_interval(steps, settings["val_every_steps"]) * accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validates else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        deterministic=_deterministic(config),
        log_every_n_steps=config["callbacks"]["log_every_steps"],
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=config["callbacks"]["progress"],
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO(), *_cluster()],
    )


def strategy_of(config: Config) -> str | Strategy:
    """What Lightning takes for `trainer.strategy`; raises ValueError for what is none, or does not go with the rest."""
    name, ema_decay = config["trainer"]["strategy"], config["optim"]["ema_decay"]
    if name not in STRATEGIES:
        raise ValueError(f"trainer.strategy is {name!r}: take one of {', '.join(STRATEGIES)}")
    if name != "fsdp":
        return name
    if config["trainer"]["compile"]:
        raise ValueError(
            "trainer.compile is true and trainer.strategy fsdp, under which a validation is compiled for minutes (one of "
            "two tiny images took three): set trainer.compile=false or trainer.strategy=ddp"
        )
    if ema_decay is not None:
        raise ValueError(
            f"optim.ema_decay is {ema_decay} and trainer.strategy fsdp, but the average is of whole weights, which no rank "
            "holds: set optim.ema_decay=null or trainer.strategy=ddp"
        )
    return EncoderFSDPStrategy()


def _cluster() -> list[SLURMEnvironment]:
    """Under srun: SLURM or submitit start a job anew, not Lightning, whose own checkpoint would stand before `last.ckpt`."""
    by_srun = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if by_srun else []


def micro_batches(config: Config, model: str) -> int:
    """Micro-batches a step, which make up for missing devices; raises ValueError where it is no whole number."""
    settings = config["trainer"]
    wanted = settings["images_per_step"] or recipe_of(config, model)["images_per_step"]
    at_once = config["loader"]["batch_size"] * num_devices(config)
    if wanted % at_once:
        raise ValueError(
            f"a step of {wanted} images cannot be made of {at_once} at once ({num_devices(config)} devices with "
            f"{config['loader']['batch_size']} each): set trainer.images_per_step, trainer.devices or "
            "loader.batch_size so that the first is a multiple of the other two's product"
        )
    return wanted // at_once


def num_devices(config: Config) -> int:
    """Of all nodes."""
    devices, nodes = config["trainer"]["devices"], config["trainer"]["num_nodes"]
    if isinstance(devices, list):
        return len(devices) * nodes
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices is {devices!r}: say how many, or which: micro-batches depend on it")
    return devices * nodes


def validation_interval(steps: int, wanted: int) -> int:
    """The divisor of `steps` that is nearest to `wanted` in proportion: the last step is measured, and none twice."""
    divisors = [n for n in range(1, steps + 1) if steps % n == 0]
    return min(divisors, key=lambda n: max(n, wanted) / min(n, wanted))


def _deterministic(config: Config) -> Any:
    chosen, accelerator = config["trainer"]["deterministic"], config["trainer"]["accelerator"]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    return on_cpu if chosen is None else chosen
