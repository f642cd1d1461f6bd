"""The image set of a run: its shards for training, validation and test, and the interface of every kind of data set."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from samtrain.data.datasets import Source
from samtrain.data.shards import Record, expand_urls, index_tar, is_remote, read_record
from samtrain.ops.rle_extents import rle_extents

log = logging.getLogger(__name__)

MIN_CELLS = 2.5  # decoder cells across an object: at 96 px nuclei have 1.8 and need native crops, COCO's photos have 3.2
MAX_MEASURED_IMAGES = 200  # images that `frame=auto` computes its medians from


@dataclass(frozen=True)
class ImageSet:
    """Shards by their use: `public` trains a first model, `pool` is annotated by the data engine or trained on."""

    public: list[Source]
    pool: list[Source]
    val: list[str]
    test: list[str]

    @property
    def train(self) -> list[Source]:
        """Returns the public images if there are any, because the pool is then for annotating, or else the pool."""
        return self.public or self.pool

    def pool_tars(self) -> list[str]:
        return [tar for source in self.pool for tar in expand_urls(source.urls)]


@dataclass(frozen=True, kw_only=True)
class DataConfig(ABC):
    """The `data` node of a config. A data set of your own is a subclass that implements `open`.

    frame:    resize: the longest side becomes the model's input size; native: crops and tiles of the image's own pixels;
              auto: see `uses_native_pixels`
    on_error: raise, or skip to leave out records that cannot be read
    seen_images: refuse to measure images that the model was trained on, or allow it
    empty_images: train on images without objects, too
    """

    frame: Literal["auto", "resize", "native"] = "resize"
    on_error: Literal["raise", "skip"] = "raise"
    seen_images: Literal["refuse", "allow"] = "refuse"
    empty_images: bool = False

    @abstractmethod
    def open(self, data_dir: str) -> ImageSet:
        """Returns the shards, after writing them below `data_dir` if they do not exist yet."""

    def semi_automatic_pool(self, data_dir: str, images: ImageSet) -> list[str]:
        """Returns the tars that the semi-automatic rounds annotate; by default the pool."""
        return images.pool_tars()

    @property
    def allow_pipe(self) -> bool:
        """Returns whether `pipe:` URLs may run a shell."""
        return False


def open_prepared(folder: Path) -> ImageSet:
    """Returns the splits of a prepared folder that hold images."""
    tars = {split: sorted(map(str, (folder / split).glob("*.tar"))) for split in ("public", "pool", "val", "test")}
    counts = ", ".join(f"{split} {len(paths)}" for split, paths in tars.items() if paths)
    log.info("Number of shards in %s: %s.", folder, counts)
    return ImageSet(
        public=[Source(tars["public"])] if tars["public"] else [],
        pool=[Source(tars["pool"])] if tars["pool"] else [],
        val=tars["val"],
        test=tars["test"],
    )


def records(tars: Sequence[str], on_error: str = "raise") -> Iterator[Record]:
    """Yields the records of local shards in their order; on_error="skip" leaves out those that cannot be read."""
    for tar in tars:
        index = index_tar(tar, on_error=on_error)
        for i in range(len(index)):
            try:
                record = read_record(index, i)
            except ValueError as error:
                if on_error == "raise":
                    raise
                log.warning("Skipped a record: %s", error)
                continue
            yield record


def count_records(tars: Sequence[str]) -> int:
    """Returns the number of records in local shards, those included that cannot be read."""
    return sum(len(index_tar(tar, on_error="skip")) for tar in tars)


def uses_native_pixels(frame: str, images: ImageSet, *, image_size: int, mask_size: int) -> bool:
    """Returns whether the model sees crops and tiles of an image's own pixels, or the image resized to its input.

    `frame` auto decides by the pool: native if the median image is larger than `image_size` and the median object, shrunk
    with it, would cover fewer than `MIN_CELLS` cells of the decoder's `mask_size` grid from side to side.
    """
    if frame != "auto":
        return frame == "native"
    # measuring must not download anything
    local = [tar for tar in images.pool_tars() if not is_remote(tar)]
    sides, cells = _measure_sizes(local or images.val, mask_size)
    if not cells:
        log.info("data.frame=auto chooses resize, because no image has a mask that could be too small")
        return False
    native = bool(np.median(sides) > image_size and np.median(cells) < MIN_CELLS)
    log.info(
        "data.frame=auto chooses %s: the median image has %g pixels, and the median object %.1f decoder cells after resizing "
        "to %d pixels",
        "native" if native else "resize", np.median(sides), np.median(cells), image_size,
    )  # fmt: skip
    return native


def _measure_sizes(tars: Sequence[str], mask_size: int) -> tuple[list[int], list[float]]:
    """Returns the longest sides of the first images, and the sides of their objects in cells of the decoder's grid."""
    sides: list[int] = []
    cells: list[float] = []
    for record, _ in zip(records(tars, on_error="skip"), range(MAX_MEASURED_IMAGES), strict=False):
        image, objects = record.annotation["image"], record.annotation["annotations"]
        sides.append(max(image["width"], image["height"]))
        with suppress(ValueError):  # a broken mask is an error later, where data.on_error says what to do
            areas, _ = rle_extents([each["segmentation"] for each in objects], (image["height"], image["width"]))
            cells += [area**0.5 * mask_size / sides[-1] for area in areas.tolist() if area > 0]
    return sides, cells
