"""Rounds on images without masks: which annotators can work on them, and what the models are measured on."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from samtrain.data.image_set import ImageSet
from samtrain.data.kinds import FolderConfig
from samtrain.data.prepare.config import is_unlabelled
from samtrain.data.shards import expand_urls
from samtrain.data_engine.annotators import SimulatedAnnotator
from samtrain.data_engine.interface import annotates_rounds
from samtrain.run.image_sets import data_config
from samtrain.run.settings import Config
from samtrain.run.targets import find_target

log = logging.getLogger(__name__)


def by_people(config: Config) -> bool:
    """Returns whether the annotator takes whole rounds, as people do."""
    return annotates_rounds(find_target(config["annotator"], "annotator"))


def with_unlabelled(config: Config) -> Config:
    """Returns the config with `data.form=unlabelled` and the shares `annotate.val` and `annotate.test` if no image has a mask.

    Raises ValueError if the annotator is the simulated one, which works from masks.
    """
    settings = data_config(config["data"])
    if not isinstance(settings, FolderConfig) or not is_unlabelled(settings):
        return config
    if find_target(config["annotator"], "annotator") is SimulatedAnnotator:
        raise ValueError(
            f"the images in {settings.root} have no masks, and the simulated annotator works from masks: let people annotate "
            "them with annotator=web, or say where their masks are (data.form, data.masks, data.annotations)"
        )
    shares = {split: share for split in ("val", "test") if isinstance(share := config["annotate"][split], int | float)}
    return {**config, "data": {**config["data"], "form": "unlabelled", "val": 0.0, "test": 0.0, **shares}}


def drawn_by_people(config: Config) -> list[str]:
    """Returns the splits of `val` and `test` that are shares of images without masks, which people have to draw first."""
    settings = data_config(config["data"])
    if not isinstance(settings, FolderConfig) or settings.form != "unlabelled":
        return []
    return [split for split in ("val", "test") if isinstance(config["annotate"][split], int | float)]


def with_own_sets(config: Config, images: ImageSet) -> ImageSet:
    """Returns the images with the validation and test sets that `annotate.val` and `annotate.test` name, if they name any."""
    own = {split: config["annotate"][split] for split in ("val", "test")} if "annotate" in config else {}
    found: dict[str, Any] = {
        split: expand_urls(urls, f"annotate.{split}") for split, urls in own.items() if isinstance(urls, str | list)
    }
    return replace(images, **found)


def check_validation(config: Config, images: ImageSet) -> None:
    """Raises ValueError if a simulation has no validation images; logs what that means for people."""
    if images.val:
        return
    if not by_people(config):
        raise ValueError("the rounds choose models by validation, but no image is held back for it: set data.val")
    log.warning(
        "No image is held back for validation, so nothing is measured and the newest model is always promoted: set "
        "annotate.val to a share of the images, which people then annotate first, or to shards of yours."
    )
