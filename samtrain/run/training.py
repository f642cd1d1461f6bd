"""Trains one model: `task=fit` does it once, `task=rounds` once per round."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pytorch_lightning.loggers import Logger

from samtrain.data.contents import contents_of
from samtrain.data.datasets import Source
from samtrain.data_engine.stages import FitRequest, FitResult
from samtrain.files import atomic_path
from samtrain.modeling.build import load_sam
from samtrain.modeling.growth import with_text
from samtrain.modeling.lora import KEY as LORA
from samtrain.modeling.lora import save_adapter
from samtrain.modeling.sam import Sam
from samtrain.modeling.trained_on import images_trained_on
from samtrain.run.build import make_loss, make_prompts, make_sam, optimizer_config, transforms_of
from samtrain.run.image_sets import data_config
from samtrain.run.seen_images import tars_of
from samtrain.run.settings import Config, read, recipe_of
from samtrain.run.text import crops_of
from samtrain.run.trainer import make_callbacks, make_trainer, make_validator
from samtrain.terminal import counted
from samtrain.text.crops import Crops
from samtrain.training.callbacks import BestCheckpoint, TrainedOn, batches_seen
from samtrain.training.config import LoaderConfig, TrainerConfig
from samtrain.training.datamodule import SamDataModule
from samtrain.training.embedding_cache import EmbeddingCache
from samtrain.training.lit_sam import LitSam
from samtrain.training.lit_text import LitTextSam
from samtrain.training.optim import OptimConfig

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it lists devices and packages that one could install
logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # the report of trainer.extra.profiler
warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode")  # frozen parts are in eval mode on purpose
warnings.filterwarnings("ignore", message=r".*sync_dist=True")  # what is logged has been reduced over all ranks
warnings.filterwarnings("ignore", message=r".*LeafSpec")  # Lightning 2.6 on torch 2.15


def train(config: Config, request: FitRequest, loggers: list[Logger]) -> FitResult:
    """Trains a model, or resumes from `checkpoints/last.ckpt`; leaves `best.ckpt` and `last.ckpt` in the directory."""
    begin = time.perf_counter()
    # the model, its data, and where an earlier process stopped
    sam = make_sam(config, model=request.model, init=request.init, key=request.model_key)
    crops = crops_of(config)
    if crops is not None:
        sam = with_text(sam, crops.dim, seed=config["seed"])
    sam.config = replace(sam.config, frame=request.frame)  # the checkpoints tell everyone who uses the model
    model = sam.config.model
    steps = request.steps or recipe_of(config, model).max_steps
    resume = request.last if request.last.is_file() else None
    lit = _lit_sam(config, request, sam, crops)
    data = _data(config, request, image_size=sam.config.image_size, start_step=batches_seen(resume))
    data.check_validation()

    # train
    callbacks = [*make_callbacks(config, request), _trained_on(request)]
    trainer = make_trainer(config, request.directory, callbacks, loggers, steps, model, validates=bool(request.val))
    log.info("%s %s for %s in %s.", "Resuming" if resume else "Training", model, counted(steps, "step"), request.directory)
    trainer.fit(lit, datamodule=data, ckpt_path=resume)
    for logger in loggers:
        logger.save()

    # without validation images the last checkpoint is the best
    best = next((callback for callback in callbacks if isinstance(callback, BestCheckpoint)), None)
    if trainer.is_global_zero and not request.best.is_file():
        with atomic_path(request.best) as whole:
            shutil.copyfile(request.last, whole)
    if trainer.is_global_zero and lit.lora is not None:
        found = torch.load(request.best, map_location="cpu", weights_only=True)[LORA]
        save_adapter(found["differences"], request.best.parent / "adapter", rank=found["rank"], alpha=found["alpha"])
    return FitResult(
        checkpoint=request.best,
        last=request.last,
        metrics=best.scores if best else {},
        images_seen=lit.images_seen,
        seconds=time.perf_counter() - begin,
    )


def _trained_on(request: FitRequest) -> TrainedOn:
    """Returns the callback that stores what this run trains on, and what the model before it was trained on."""
    before = images_trained_on(request.init) if request.init else set()
    return TrainedOn(before | contents_of(tars_of(request.train)))


def validate(config: Config, checkpoint: Path, val: list[str], *, native: bool) -> dict[str, float]:
    """Returns `val/*` of a checkpoint, measured as during training."""
    sam = load_sam(checkpoint)
    request = FitRequest(directory=checkpoint.parent, model=None, init=checkpoint, train=[], val=val, steps=None, native=native)
    settings = read(TrainerConfig, config, "trainer")
    lit = LitSam(
        sam=sam,
        prompts=make_prompts(config),
        loss=make_loss(config),
        optim=optimizer_config(config, sam.config.model, 0.0),
        seed=config["seed"],
        val_resolution=settings.val_resolution,
    )
    trainer = make_validator(settings)
    trainer.validate(lit, datamodule=_data(config, request, image_size=sam.config.image_size), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _lit_sam(config: Config, request: FitRequest, sam: Sam, crops: Crops | None) -> LitSam:
    optim, trainer = read(OptimConfig, config, "optim"), read(TrainerConfig, config, "trainer")
    if optim.lora is not None and trainer.strategy == "fsdp":
        raise ValueError("optim.lora does not work with trainer.strategy=fsdp, which shards layers: set trainer.strategy=ddp")
    recipe = recipe_of(config, sam.config.model)
    rate = recipe.learning_rate * request.learning_rate_factor
    kind: Callable[..., LitSam] = LitSam if crops is None else partial(LitTextSam, crops=crops)
    return kind(
        sam=sam,
        prompts=make_prompts(config),
        loss=make_loss(config),
        optim=optimizer_config(config, sam.config.model, rate),
        seed=config["seed"],
        trainable=["*"] if optim.trainable is None else optim.trainable,
        activation_checkpointing=trainer.activation_checkpointing,
        compile_encoder=trainer.compile,
        images_seen=request.images_seen,
        val_resolution=trainer.val_resolution,
        embedding_cache=_embedding_cache(config, request, trainer),
        lora=optim.lora,
    )


def _embedding_cache(config: Config, request: FitRequest, trainer: TrainerConfig) -> EmbeddingCache | None:
    """Returns the cache that `trainer.cache_embeddings` asks for; raises ValueError if the images change from step to step."""
    if trainer.cache_embeddings is None:
        return None
    flips = read(LoaderConfig, config, "loader").flip_probability
    changes = {
        "loader.flip_probability=0": flips > 0,
        "loader.large_scale_jitter=null": request.large_scale_jitter is not None,
        "data.frame=resize": request.native or any(source.frame == "native" for source in request.train),
    }
    if needed := [setting for setting, changed in changes.items() if changed]:
        raise ValueError(
            "trainer.cache_embeddings encodes each image once, but the pixels of an image are changed or cropped at random at "
            f"every step: set {' '.join(needed)}, or trainer.cache_embeddings=null"
        )
    return EmbeddingCache(Path(config["data_dir"]) / "embeddings", getattr(torch, trainer.cache_embeddings))


def _data(config: Config, request: FitRequest, *, image_size: int, start_step: int = 0) -> SamDataModule:
    """Returns the loaders; `start_step` counts the batches that an earlier process has seen."""
    data = data_config(config["data"])
    for_training, for_validation = transforms_of(
        config, image_size=image_size, native=request.native, jitter=request.large_scale_jitter
    )
    return SamDataModule(
        train=[_with_own_frame(config, source, image_size, request) for source in request.train],
        val=request.val,
        train_transform=for_training,
        val_transform=for_validation,
        loader=read(LoaderConfig, config, "loader"),
        seed=config["seed"],
        start_step=start_step,
        on_error=data.on_error,
        allow_pipe=data.allow_pipe,
        empty_images=data.empty_images,
    )


def _with_own_frame(config: Config, source: Source, image_size: int, request: FitRequest) -> Source:
    """Returns the source with the training transform of its own frame, unchanged if it has none."""
    if source.frame is None:
        return source
    native = source.frame == "native"
    transform, _ = transforms_of(config, image_size=image_size, native=native, jitter=request.large_scale_jitter)
    return replace(source, transform=transform)
