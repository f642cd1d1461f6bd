"""People annotate the images for validation and test first, before any round; nothing is ever trained on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from samtrain.data.image_set import ImageSet
from samtrain.data_engine.annotation import Annotating, Helpers, write_shards
from samtrain.data_engine.engine_files import EngineFiles, identify
from samtrain.data_engine.interface import RoundAnnotator
from samtrain.data_engine.pool import Pool
from samtrain.data_engine.records import Drawing, Origin
from samtrain.files import do_once
from samtrain.run.image_sets import data_config
from samtrain.run.settings import Config
from samtrain.tasks.rounds.tools import EngineTools
from samtrain.tasks.rounds.unlabelled import drawn_by_people

log = logging.getLogger(__name__)

NUMBER, STAGE = 0, "held_back"  # the round of the page in which these images are annotated


def with_held_back(config: Config, run_dir: Path, tools: EngineTools, people: RoundAnnotator, initial: Path) -> ImageSet:
    """Returns the image set in which the images for validation and test have the masks that people have drawn.

    Stage 2 has those of the run of stage 1. A split in which nobody has drawn a mask is empty, which is logged.
    """
    images = tools.images
    tars = {split: getattr(images, split) for split in drawn_by_people(config) if getattr(images, split)}
    if not tars:
        return images
    files = EngineFiles(Path(config["stage1_run"]) if config["stage1_run"] else run_dir)
    folder = files.folder(NUMBER) / "held_back"
    pool = Pool([tar for own in tars.values() for tar in own], data_config(config["data"]).on_error)
    splits = {key: split for split, own in tars.items() for key in keys_of(own, pool)}
    items = pool.items()

    @cache  # for each split the same
    def annotate() -> list[Drawing]:
        helpers = Helpers(
            annotator=people,
            origin=Origin(identify(initial)[0]),
            checkpoint=initial,
            load_predictor=lambda: tools.load_predictor(initial),
        )
        work = Annotating(
            folder=folder / "annotations",
            pool=pool,
            items=items,
            helpers=helpers,
            number=NUMBER,
            stage=STAGE,
            splits=splits,
            on_error=data_config(config["data"]).on_error,
        )
        return work.drawings().result

    def write(split: str) -> list[str]:
        own = [(item, each) for item, each in zip(items, annotate(), strict=True) if splits[each["key"]] == split]
        if not any(each["annotations"] for _, each in own):
            return []
        shards = write_shards(folder / split, split, pool, [item for item, _ in own], [each for _, each in own])
        return [files.name(Path(shard["path"])) for shard in shards]

    found = {split: do_once(folder / f"{split}.json", partial(write, split)).result for split in tars}
    for split in [split for split, names in found.items() if not names]:
        log.warning("Nobody has drawn a mask in the images for %s, so they measure nothing.", split)
    shards: dict[str, Any] = {split: [str(files.path(name)) for name in names] for split, names in found.items()}
    return replace(images, **shards)


def keys_of(tars: Sequence[str], pool: Pool) -> list[str]:
    """Returns the keys of the images of some of the tars of a pool."""
    return [pool.key(item) for item in pool.items() if pool.place(item)[0] in tars]
