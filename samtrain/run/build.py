"""Builds what tasks share from the config: models, optimiser settings, transforms, prompts, loss, loggers."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger

from samtrain.data.transforms import LargeScaleJitter, NativeCrop, ResizeLongestSide, WindowTransform
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.losses import SamLoss
from samtrain.modeling.build import build_sam, checkpoint_config, load_sam, sam_config
from samtrain.modeling.growth import check_depth_growth, next_model
from samtrain.modeling.mae import load_mae
from samtrain.modeling.sam import Sam, SamConfig
from samtrain.modeling.timm_encoder import is_timm, load_timm
from samtrain.prompts import Sampler
from samtrain.run.settings import Config, ModelConfig, read, recipe_of
from samtrain.run.targets import build
from samtrain.training.config import LoaderConfig, TrainerConfig
from samtrain.training.loggers import LoggerConfig, make_loggers
from samtrain.training.optim import AdamWConfig, OptimConfig, Recipe

log = logging.getLogger(__name__)


def make_sam(config: Config, *, model: str | None, init: str | Path | None, key: str = "model.name") -> Sam:
    """Returns a model to train: a new one, or the one in `init`, grown where it is to become larger.

    `model` None takes the model of `init`. A larger model starts from MAE weights if `model.mae` is true; otherwise its new
    blocks start as identities. `key` is the config key that errors name.
    """
    settings = read(ModelConfig, config, "model")
    if init is None:
        return _new_sam(config, settings, model, key)
    parent = load_sam(init, image_size=settings.image_size)
    if settings.decoder_depth not in (None, parent.config.decoder_depth):
        raise ValueError(
            f"model.decoder_depth is {settings.decoder_depth}, but the decoder of {init} has {parent.config.decoder_depth} "
            "layers: set model.decoder_depth=null to train this decoder, or checkpoint=null to start a new model"
        )
    model = model or parent.config.model
    recipe = recipe_of(config, model)
    if model == parent.config.model:
        return _with_rates(parent, recipe)
    log.info("%s grows into %s.", parent.config.model, model)
    kept = {name: getattr(parent.config, name) for name in ("image_size", "decoder_depth", "text_dim")}
    target = sam_config(model, **kept, **_rates(recipe))
    check_growth(config, parent.config, target, key=key)
    return next_model(parent, target, _mae(recipe, model) if settings.mae else None, seed=config["seed"], key=key)


def _new_sam(config: Config, settings: ModelConfig, model: str | None, key: str) -> Sam:
    """Returns a model with new weights, a function of the seed; its encoder starts from MAE weights if `model.mae` is true."""
    if model is None:
        raise ValueError(f"{key} is null and there is no checkpoint to take the model from: set {key} or checkpoint")
    recipe = recipe_of(config, model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        sam = build_sam(model, image_size=settings.image_size, **_rates(recipe), **_own_sizes(settings))
    if settings.mae and is_timm(model):
        load_timm(sam.image_encoder, model, _mae(recipe, "timm"))
    elif settings.mae:
        load_mae(sam, _mae(recipe, model))
    return sam


def check_growth(config: Config, parent: SamConfig, child: SamConfig, *, key: str) -> None:
    """Raises ValueError if `make_sam` could not make the child from the parent; builds nothing."""
    recipe = recipe_of(config, child.model)
    if parent.model == child.model:
        return
    if is_timm(parent.model) or is_timm(child.model):
        raise ValueError(
            f"{key} is {child.model} and the model before it is {parent.model}: a timm encoder does not grow, so give all "
            "rounds and the first model (model.name) the same one"
        )
    if read(ModelConfig, config, "model").mae:
        _mae(recipe, child.model)
    else:
        check_depth_growth(parent, child, key=key)


def sam_config_of(config: Config) -> SamConfig:
    """Returns the sizes of the model that `model` and `checkpoint` describe, without building it."""
    settings = read(ModelConfig, config, "model")
    if config["checkpoint"] is None or (settings.name and settings.image_size):
        if settings.name is None:
            raise ValueError("model.name and checkpoint are both null, so there is no model: set one of them")
        return sam_config(settings.name, image_size=settings.image_size, **_own_sizes(settings))
    own = checkpoint_config(config["checkpoint"])
    image_size = settings.image_size or own.image_size
    if settings.name is None:
        return replace(own, image_size=image_size)
    return sam_config(settings.name, image_size=image_size, decoder_depth=own.decoder_depth)


def _own_sizes(settings: ModelConfig) -> dict[str, Any]:
    """Returns what the `model` node changes of a named size."""
    return {} if settings.decoder_depth is None else {"decoder_depth": settings.decoder_depth}


def _rates(recipe: Recipe) -> dict[str, Any]:
    return {"drop_path": recipe.drop_path, "dropout": recipe.dropout}


def _mae(recipe: Recipe, model: str) -> str:
    if not recipe.mae:
        raise ValueError(f"model.mae is true and {model} has no MAE weights: set recipes.{model}.mae, or model.mae=false")
    return recipe.mae


def _with_rates(sam: Sam, recipe: Recipe) -> Sam:
    """Returns the same weights in a model with the recipe's drop path and dropout, which have no weights."""
    with torch.device("meta"):
        again = Sam(replace(sam.config, **_rates(recipe)))
    again.register_constants()
    again.load_state_dict(sam.state_dict(), assign=True)
    return again


def optimizer_config(config: Config, model: str, learning_rate: float) -> AdamWConfig:
    """Returns the optimiser settings of a model size at this learning rate."""
    return AdamWConfig.of(recipe_of(config, model), read(OptimConfig, config, "optim"), learning_rate)


def transforms_of(
    config: Config, *, image_size: int, native: bool, jitter: list[float] | None
) -> tuple[WindowTransform, WindowTransform]:
    """Returns the transforms of training and of validation images; `jitter` is the range of the large-scale jitter."""
    loader = read(LoaderConfig, config, "loader")
    areas = {"max_mask_area": loader.max_mask_area, "min_mask_area": loader.min_mask_area}
    common: dict[str, Any] = {"image_size": image_size, **areas}
    training = {**common, "flip_probability": loader.flip_probability}
    if native:
        if jitter:
            log.warning("large_scale_jitter is not applied, because native crops keep the image's own scale.")
        return NativeCrop(**training), NativeCrop(centre=True, **common)
    jittered = LargeScaleJitter(scale=jitter, **training) if jitter else ResizeLongestSide(**training)
    return jittered, ResizeLongestSide(**common)


def device_of(config: Config, worker: int | None = None) -> torch.device:
    """Returns the device to predict on by `trainer.accelerator`: the CPU, the first GPU, or the GPU of a worker."""
    if read(TrainerConfig, config, "trainer").accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda") if worker is None else torch.device("cuda", worker % torch.cuda.device_count())


def make_prompts(config: Config) -> Sampler:
    """Returns the prompt sampler of training: ours, or one of your own by `prompts._target_`."""
    return build(config["prompts"], "prompts", methods=("schedule", "first", "next"))


def make_loss(config: Config) -> SamLoss:
    """Returns the loss: ours, or one of your own by `loss._target_`."""
    return build(config["loss"], "loss", methods=("targets", "interaction_weight", "__call__"))


def loggers_of(config: Config, directory: Path, *, part_of: Path | None = None) -> list[Logger]:
    """Returns the loggers that write to `directory`: `metrics.csv` first, then what the `logger` node adds."""
    settings = read(LoggerConfig, config, "logger")
    own = [build(node, f"logger.extra.{i}", of=Logger) for i, node in enumerate(settings.extra)]
    return [*make_loggers(directory, settings, config, part_of=part_of), *own]


def make_generator(config: Config, device: torch.device) -> SamAutomaticMaskGenerator:
    """Returns the generator that the `generator` node describes, with the weights of `checkpoint`."""
    return build(config["generator"], "generator")(load_sam(config["checkpoint"]).to(device))
