"""The kinds of data set that `data.kind` names, each a config that opens its shards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from samtrain.data.datasets import Source
from samtrain.data.image_set import DataConfig, ImageSet, open_prepared
from samtrain.data.prepare.config import PrepareConfig
from samtrain.data.prepare.importers import prepare
from samtrain.data.scenes.synthetic import check_splits, make_synthetic
from samtrain.data.shards import expand_urls, is_remote

ROUND_SHARD = re.compile(r"(.+)_round\d+_\d+\.tar")  # as the data engine names the shards of its rounds
MANY_SCENES = 200  # from here on, worker processes save more time than they take to start


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(DataConfig):
    """Scenes of nested objects that are painted once; `splits` says how many for each split, `size` is (H, W)."""

    kind: Literal["synthetic"] = "synthetic"
    splits: dict[str, int]
    size: tuple[int, int]
    seed: int = 0

    def __post_init__(self) -> None:
        check_splits(self.splits, self.size, self.seed)

    def open(self, data_dir: str) -> ImageSet:
        return open_prepared(self._paint(data_dir, [split for split in self.splits if split != "crowded"]))

    def semi_automatic_pool(self, data_dir: str, images: ImageSet) -> list[str]:
        """Returns the tars of the crowded scenes, or the pool if there are none."""
        if not self.splits.get("crowded"):
            return images.pool_tars()
        return sorted(map(str, (self._paint(data_dir, ["crowded"]) / "crowded").glob("*.tar")))

    def _paint(self, data_dir: str, names: Iterable[str]) -> Path:
        splits = {name: self.splits[name] for name in names}
        num_workers = (os.cpu_count() or 1) if sum(splits.values()) >= MANY_SCENES else 0
        return make_synthetic(data_dir, splits=splits, size=self.size, seed=self.seed, num_workers=num_workers)


@dataclass(frozen=True, kw_only=True)
class FolderConfig(DataConfig, PrepareConfig):
    """Your own images and masks, written to shards once; every setting of `PrepareConfig` is a key of `data`."""

    kind: Literal["folder"] = "folder"

    def open(self, data_dir: str) -> ImageSet:
        return open_prepared(prepare(data_dir, self))


@dataclass(frozen=True, kw_only=True)
class ShardsConfig(DataConfig):
    """SA-1B's tars as they are: paths, folders, globs, brace patterns, URLs, or lists of them.

    train:      {name: {urls, weight, frame}}; a weight of 10 shows these images ten times as often, and a frame of its own
                takes the place of `frame` for the training images of this source
    val, test:  local shards
    allow_pipe: `pipe:` URLs may run a shell
    """

    kind: Literal["shards"] = "shards"
    train: dict[str, Any]
    val: str | list[str]
    test: str | list[str] | None = None
    allow_pipe: bool = False

    def open(self, data_dir: str) -> ImageSet:
        sources = {name: Source.of(source) for name, source in self.train.items()}
        for name, source in sources.items():
            _check_stages(name, expand_urls(source.urls))
        return ImageSet(
            public=[],
            pool=list(sources.values()),
            val=_local_tars(self.val, "data.val"),
            test=_local_tars(self.test, "data.test") if self.test else [],
        )


def _check_stages(name: str, tars: list[str]) -> None:
    """Raises ValueError if one source holds the masks of several stages of the data engine.

    The engine puts the rounds of all stages side by side, so RUN/rounds/*/shards may mean more than one stage.
    """
    stages = sorted({found[1] for tar in tars if (found := ROUND_SHARD.fullmatch(os.path.basename(tar)))})
    if len(stages) > 1:
        patterns = " or ".join(f"RUN/rounds/*/shards/{stage}_*.tar" for stage in stages)
        raise ValueError(f"data.train.{name}.urls holds the masks of the stages {', '.join(stages)}: choose with {patterns}")


def _local_tars(urls: str | list[str], key: str) -> list[str]:
    """Returns the shards in their order; raises ValueError for a URL, because these shards are read again and again."""
    tars = expand_urls(urls, key)
    if remote := [tar for tar in tars if is_remote(tar)]:
        raise ValueError(f"{key} holds {remote[0]}: only data.train is streamed, so download it and give its path")
    return tars


DATA_KINDS: dict[str, type[DataConfig]] = {"synthetic": SyntheticConfig, "folder": FolderConfig, "shards": ShardsConfig}
