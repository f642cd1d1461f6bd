"""CLIP for text prompts, as the config describes it: loaded from `clip`, or trained on the scenes' captions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from samtrain.data.image_set import ImageSet
from samtrain.data.kinds import SyntheticConfig
from samtrain.files import digest
from samtrain.prompts import TextSampler
from samtrain.run.build import loggers_of, make_prompts
from samtrain.run.image_sets import data_config
from samtrain.run.settings import Config, read
from samtrain.text import Clip, load_clip
from samtrain.text.config import TextConfig
from samtrain.text.crops import CropEmbedder, Crops
from samtrain.text.loading import clip_files
from samtrain.text.store import StoredCrops, TextStore
from samtrain.training.clip_training import ClipRecipe, train_clip
from samtrain.training.config import CallbacksConfig, TrainerConfig


def make_clip(config: Config) -> Clip:
    """Returns the CLIP of `clip` and `text`; raises ValueError if there is none."""
    if config["clip"] is None:
        raise ValueError("clip is null, but text prompts need one: set clip=FILE, or train a small one with +experiment=clip")
    text = read(TextConfig, config, "text")
    return load_clip(config["clip"], name=text.clip_name, quick_gelu=text.quick_gelu, mask_attention=text.mask_attention)


def crops_of(config: Config) -> Crops | None:
    """Returns what embeds the objects of a training, or looks them up, or None if its prompts need no CLIP."""
    if not isinstance(make_prompts(config), TextSampler):
        return None
    text = read(TextConfig, config, "text")
    if text.embeddings is not None:
        return StoredCrops(TextStore(text.embeddings, clip_digest(config) if config["clip"] else None))
    return CropEmbedder(make_clip(config), text)


def clip_digest(config: Config) -> str:
    """Returns what identifies the CLIP of `clip` and how it is shown the objects."""
    text = read(TextConfig, config, "text")
    parts = [*(digest(file) for file in clip_files(config["clip"])), str(text.clip_name), str(text.mask_attention)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def with_clip(config: Config, run_dir: Path) -> Config:
    """Returns the config with a CLIP for its text prompts: the one of `clip`, or a small one that is trained first.

    The small one is written to `<run_dir>/clip_training/clip`.
    """
    has_embeddings = read(TextConfig, config, "text").embeddings is not None
    if config["clip"] is not None or has_embeddings or not isinstance(make_prompts(config), TextSampler):
        return config
    if not isinstance(data_config(config["data"]), SyntheticConfig):
        raise ValueError("clip is null, and only data=synthetic has captions to train one on: set clip=FILE")
    directory = run_dir / "clip_training"
    folder = train_clip_of(config, directory, clip_images(config), loggers_of(config, directory, part_of=run_dir))
    return {**config, "clip": str(folder)}


def text_settings(config: Config) -> dict[str, Any]:
    """Returns the arguments of the `Text` evaluator that say which CLIP it takes; raises ValueError if there is none."""
    if config["clip"] is None:
        make_clip(config)
    templates = read(TextConfig, config, "text").templates
    return {"make_clip": partial(make_clip, config), "clip_files": clip_files(config["clip"]), "templates": templates}


def clip_images(config: Config) -> ImageSet:
    """Returns the images that a CLIP is trained and tested on: of painted scenes those of another seed than all others."""
    data = data_config(config["data"])
    if isinstance(data, SyntheticConfig):
        splits = {"public": read(ClipRecipe, config, "clip_training").scenes, "test": data.splits.get("test", 0)}
        data = replace(data, splits=splits, seed=data.seed + 1)
    return data.open(config["data_dir"])


def train_clip_of(config: Config, directory: Path, images: ImageSet, loggers: Sequence[Logger]) -> Path:
    """Trains a CLIP on the captions of the training images as `clip_training` says; returns its folder."""
    text = read(TextConfig, config, "text")
    return train_clip(
        images.train,
        directory,
        recipe=read(ClipRecipe, config, "clip_training"),
        scale=text.box_scale,
        zero_background=text.zero_background,
        seed=config["seed"],
        loggers=loggers,
        accelerator=read(TrainerConfig, config, "trainer").accelerator,
        progress=read(CallbacksConfig, config, "callbacks").progress,
    )
