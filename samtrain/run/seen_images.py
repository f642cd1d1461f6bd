"""Refuses to measure a model on images that it was trained on, which its checkpoint remembers by their pixels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from samtrain.data.contents import contents_of
from samtrain.data.datasets import Source
from samtrain.data.image_set import ImageSet
from samtrain.data.shards import expand_urls
from samtrain.modeling.trained_on import images_trained_on
from samtrain.run.image_sets import data_config
from samtrain.run.settings import Config, read
from samtrain.training.config import LoaderConfig


def check_unseen(config: Config, tars: Iterable[str], name: str, checkpoint: str | Path | None) -> None:
    """Raises ValueError if `checkpoint` was trained on images of these tars; `name` says in the error what they are."""
    if checkpoint is not None and _forbids_seen(config) and (seen := images_trained_on(checkpoint)):
        _refuse_common(contents_of(tars), seen, name, f"{checkpoint} was trained on")


def check_splits(config: Config, images: ImageSet, trained_on: Iterable[Source]) -> None:
    """Raises ValueError if images for validation or test are also trained on, by this run or for its first checkpoint.

    trained_on: what the run trains on; a data engine trains on its pool, too
    """
    loader = read(LoaderConfig, config, "loader")
    held_back = {"data.test": images.test} | ({} if loader.val_on_train else {"data.val": images.val})
    if not _forbids_seen(config) or not any(held_back.values()):
        return
    trained = contents_of(tars_of(trained_on))
    for name, tars in held_back.items():
        check_unseen(config, tars, name, config["checkpoint"])
        _refuse_common(contents_of(tars), trained, name, "this run would train on (data.train)")


def tars_of(sources: Iterable[Source]) -> list[str]:
    return [url for source in sources for url in expand_urls(source.urls)]


def _forbids_seen(config: Config) -> bool:
    return data_config(config["data"]).seen_images == "refuse"


def _refuse_common(own: set[str], seen: set[str], name: str, trained: str) -> None:
    if common := own & seen:
        raise ValueError(
            f"{len(common)} of the {len(own)} images of {name} are among those that {trained}, so a measurement on them says "
            "nothing about new images: give other images, or set data.seen_images=allow to measure them all the same"
        )
