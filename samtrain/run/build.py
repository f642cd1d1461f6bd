"""From the plain config to objects: models, optimisers, transforms, prompts."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from samtrain.data.transforms import LargeScaleJitter, NativeCrop, ResizeLongestSide, WindowTransform
from samtrain.inference.predictor import SamPredictor
from samtrain.inference.tiled import TiledPredictor
from samtrain.losses import SamLoss
from samtrain.modeling.build import build_sam, load_sam, sam_config
from samtrain.modeling.growth import check_depth_growth, next_model
from samtrain.modeling.mae import load_mae
from samtrain.modeling.sam import Sam, SamConfig
from samtrain.prompts import Sampler
from samtrain.training.optim import OptimConfig

log = logging.getLogger(__name__)

Config = dict[str, Any]


def recipe_of(config: Config, model: str) -> Config:
    """What a size trains with; raises ValueError for a size without a recipe."""
    recipes = config["recipes"]
    if model not in recipes:
        raise ValueError(
            f"{model!r} has no recipe: take one of {', '.join(recipes)} (model.name), or let it train as one of them does, "
            f"+recipe@recipes.{model}=vit_b"
        )
    return recipes[model]


def make_sam(config: Config, *, model: str | None, init: str | Path | None, key: str = "model.name") -> Sam:
    """A model to train: new, or from `init` and, where it is to be another one, grown from it.

    `model` None is that of `init`. A larger one begins from MAE weights where the scale has them, else its new blocks
    begin as identities. `key` is the config key that errors name.
    """
    settings, seed = config["model"], config["seed"]
    if init is None:
        if model is None:
            raise ValueError(f"{key} is null and there is no checkpoint to take the model from: set one of the two")
        recipe = recipe_of(config, model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sam = build_sam(model, image_size=settings["image_size"], **_rates(recipe), **_own_sizes(settings))
        if settings["mae"]:
            load_mae(sam, _mae(recipe, model))
        return sam

    parent = load_sam(init, image_size=settings["image_size"])
    if (depth := settings["decoder_depth"]) not in (None, parent.config.decoder_depth):
        raise ValueError(
            f"model.decoder_depth is {depth}, the decoder of {init} has {parent.config.decoder_depth} layers: set "
            "model.decoder_depth=null to go on with it, or checkpoint=null to begin anew"
        )
    model = model or parent.config.model
    recipe = recipe_of(config, model)
    if model == parent.config.model:
        return _with_rates(parent, recipe)
    log.info("%s grows into %s", parent.config.model, model)
    target = sam_config(model, image_size=parent.config.image_size, decoder_depth=parent.config.decoder_depth, **_rates(recipe))
    return next_model(parent, target, _mae(recipe, model) if settings["mae"] else None, seed=seed, key=key)


def check_growth(config: Config, parent: SamConfig, child: SamConfig, *, key: str) -> None:
    """Raises ValueError where `make_sam` would not make the child of the parent; nothing is built for it."""
    recipe = recipe_of(config, child.model)
    if parent.model == child.model:
        return
    if config["model"]["mae"]:
        _mae(recipe, child.model)
    else:
        check_depth_growth(parent, child, key=key)


def sam_config_of(config: Config) -> SamConfig:
    """The sizes of the model that `model` and `checkpoint` name, without training anything."""
    settings = config["model"]
    if config["checkpoint"] is None or (settings["name"] and settings["image_size"]):
        return sam_config(settings["name"], image_size=settings["image_size"], **_own_sizes(settings))
    own = load_sam(config["checkpoint"], image_size=settings["image_size"]).config
    return sam_config(settings["name"], image_size=own.image_size) if settings["name"] else own


def learning_rate_of(config: Config, model: str, factor: float) -> float:
    """The recipe's rate times the factor of a scale or round."""
    return recipe_of(config, model)["learning_rate"] * factor


def _own_sizes(settings: Config) -> dict[str, Any]:
    """What `model` says of a size beyond its name."""
    return {} if settings["decoder_depth"] is None else {"decoder_depth": settings["decoder_depth"]}


def _rates(recipe: Config) -> dict[str, Any]:
    return {"drop_path": recipe["drop_path"], "dropout": recipe["dropout"]}


def _mae(recipe: Config, model: str) -> str:
    if not recipe["mae"]:
        raise ValueError(
            f"model.mae is true and {model} has no MAE weights: set recipes.{model}.mae, or model.mae=false"
        )
    return recipe["mae"]


def _with_rates(sam: Sam, recipe: Config) -> Sam:
    """The same weights with the recipe's drop path and dropout, which have none."""
    with torch.device("meta"):
        again = Sam(replace(sam.config, **_rates(recipe)))
    again.register_constants()
    again.load_state_dict(sam.state_dict(), assign=True)
    return again


def optim_config(config: Config, model: str, learning_rate: float) -> OptimConfig:
    """The recipe's optimiser at this rate."""
    recipe, common = recipe_of(config, model), config["optim"]
    names = {field.name for field in fields(OptimConfig)}
    settings = {key: value for key, value in {**recipe, **common}.items() if key in names}
    return OptimConfig(**{**settings, "learning_rate": learning_rate})


def transforms_of(
    config: Config, *, image_size: int, native: bool, jitter: list[float] | None
) -> tuple[WindowTransform, WindowTransform]:
    """How images come into the input, in training and in validation; `jitter` is the range of the large-scale jitter."""
    loader = config["loader"]
    common = {key: loader[key] for key in ("max_mask_area", "min_mask_area")} | {"image_size": image_size}
    training = {**common, "flip_probability": loader["flip_probability"]}
    if native:
        if jitter:
            log.warning("large_scale_jitter is left out: native crops keep the image's own scale")
        return NativeCrop(**training), NativeCrop(centre=True, **common)
    jittered = LargeScaleJitter(scale=jitter, **training) if jitter else ResizeLongestSide(**training)
    return jittered, ResizeLongestSide(**common)


def make_predictor(sam: Sam, *, native: bool) -> SamPredictor:
    """What answers clicks on an image as the model has seen images in training."""
    return TiledPredictor(sam) if native else SamPredictor(sam)


def device_of(config: Config, worker: int | None = None) -> torch.device:
    """Where images are predicted: the trainer's accelerator, its first device, or of several workers the GPU of one."""
    accelerator = config["trainer"]["accelerator"]
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda") if worker is None else torch.device("cuda", worker % torch.cuda.device_count())


def make_prompts(config: Config) -> Sampler:
    return instantiate(config["prompts"])


def make_loss(config: Config) -> SamLoss:
    return instantiate(config["loss"])
