"""From `conf/data/` to shards: which tars are for training, validation and test, made where they do not exist yet."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samtrain.data.datasets import Source
from samtrain.data.prepare.importers import prepare
from samtrain.data.prepare.prepare_config import PrepareConfig
from samtrain.data.scenes.synthetic import make_synthetic
from samtrain.data.shards import Record, expand_urls, index_tar, is_remote, read_record
from samtrain.modeling.sam import SamConfig

log = logging.getLogger(__name__)

KINDS = ("synthetic", "folder", "shards")
FRAMES = ("auto", "resize", "native")
MIN_CELLS = 2.5  # of the decoder's grid, across: at 96 px nuclei have 1.8 and want their own pixels, photos of COCO 3.2
MANY_SCENES = 200  # from here on processes of their own paint faster than they take to start
IMAGES_LOOKED_AT = 200  # for the median that `auto` decides by


@dataclass(frozen=True)
class ImageSet:
    """Shards by use; `public` is for a first model, `pool` for the engine to annotate, or to train on."""

    public: list[Source]
    pool: list[Source]
    val: list[str]
    test: list[str]

    @property
    def train(self) -> list[Source]:
        """Public data where there is some: the pool is for annotating."""
        return self.public or self.pool

    def pool_tars(self) -> list[str]:
        return [tar for source in self.pool for tar in expand_urls(source.urls)]


def open_set(data: dict[str, Any], data_dir: str) -> ImageSet:
    """The set that a `data` node describes, prepared below `data_dir` if it was not."""
    kind = data["kind"]
    if kind == "shards":
        return _open_shards(data)
    if kind == "synthetic":
        return _open_prepared(_paint(data, data_dir, [split for split in data["splits"] if split != "crowded"]))
    if kind == "folder":
        settings = {key: data[key] for key in data.keys() - {"kind", "root", "frame", "on_error"}}
        return _open_prepared(prepare(data_dir, PrepareConfig(source=data["root"], **settings)))
    raise ValueError(f"data.kind is {kind!r}: take one of {', '.join(KINDS)}")


def pool_of_stage_2(data: dict[str, Any], data_dir: str, images: ImageSet) -> list[str]:
    """The tars of what the semi-automatic rounds annotate: crowded scenes of a synthetic set, of any other its pool."""
    if data["kind"] != "synthetic" or not data["splits"].get("crowded"):
        return images.pool_tars()
    return sorted(map(str, (_paint(data, data_dir, ["crowded"]) / "crowded").glob("*.tar")))


def _paint(data: dict[str, Any], data_dir: str, names: list[str]) -> Path:
    splits = {name: data["splits"][name] for name in names}
    painters = (os.cpu_count() or 1) if sum(splits.values()) >= MANY_SCENES else 0
    return make_synthetic(data_dir, splits=splits, size=tuple(data["size"]), seed=data["seed"], num_workers=painters)


def _open_prepared(folder: Path) -> ImageSet:
    """The splits that hold something; an empty one has a folder without tars, or none."""
    tars = {split: sorted(map(str, (folder / split).glob("*.tar"))) for split in ("public", "pool", "val", "test")}
    log.info("%s: %s", folder, ", ".join(f"{len(paths)} {split}" for split, paths in tars.items()) + " shards")
    return ImageSet(
        public=[Source(tars["public"])] if tars["public"] else [],
        pool=[Source(tars["pool"])] if tars["pool"] else [],
        val=tars["val"],
        test=tars["test"],
    )


def _open_shards(data: dict[str, Any]) -> ImageSet:
    return ImageSet(
        public=[],
        pool=[Source.of(source) for source in data["train"].values()],
        val=_local(data["val"], "data.val"),
        test=_local(data["test"], "data.test") if data["test"] else [],
    )


def _local(urls: Any, key: str) -> list[str]:
    """Shards that are read again and again, in their order; raises ValueError for those that would be streamed."""
    tars = expand_urls(urls)
    if remote := [tar for tar in tars if is_remote(tar)]:
        raise ValueError(f"{key} holds {remote[0]}: only data.train is streamed; download it and give its path")
    return tars


def records(tars: list[str], on_error: str = "raise") -> Iterator[Record]:
    """All records of local shards, in their order; with on_error="skip" without those whose JSON cannot be read."""
    for tar in tars:
        index = index_tar(tar, on_error=on_error)
        for i in range(len(index)):
            try:
                record = read_record(index, i)
            except ValueError as error:
                if on_error == "raise":
                    raise
                log.warning("left out: %s", error)
                continue
            yield record


def is_native(data: dict[str, Any], images: ImageSet, sam: SamConfig) -> bool:
    """Whether images are seen in their own pixels, by crops and tiles, or resized to the input.

    `data.frame=auto` looks at the pool: native where the median image is larger than the input and the median object,
    shrunk with it, would be less than `MIN_CELLS` of the decoder's cells across.
    """
    frame = data["frame"]
    if frame not in FRAMES:
        raise ValueError(f"data.frame is {frame!r}: take one of {', '.join(FRAMES)}")
    if frame != "auto":
        return frame == "native"
    sides, cells = _sizes([tar for tar in images.pool_tars() if not is_remote(tar)] or images.val, sam)
    native = bool(np.median(sides) > sam.image_size and np.median(cells) < MIN_CELLS)
    log.info(
        "data.frame=auto: images of %g pixels, objects of %.1f decoder cells when resized to %d: %s",
        np.median(sides), np.median(cells), sam.image_size, "native" if native else "resize",
    )  # fmt: skip
    return native


def _sizes(tars: list[str], sam: SamConfig) -> tuple[list[int], list[float]]:
    """Longest sides of some images, and the sides of their objects in cells of the decoder's grid."""
    sides: list[int] = []
    cells: list[float] = []
    for record, _ in zip(records(tars, on_error="skip"), range(IMAGES_LOOKED_AT), strict=False):
        image, objects = record.annotation["image"], record.annotation["annotations"]
        sides.append(max(image["width"], image["height"]))
        areas = [each.get("area") for each in objects]
        cells += [a**0.5 * sam.mask_size / sides[-1] for a in areas if isinstance(a, (int, float)) and a > 0]
    return sides, cells or [float(sam.mask_size)]
