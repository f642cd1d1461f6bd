"""Many images filled in and annotated with one model, resumable after each, and the shards that come of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from samtrain.data.decode import decode_image
from samtrain.data.shards import Record, ShardWriter
from samtrain.data_engine.annotators import Annotator, ImageToAnnotate
from samtrain.data_engine.pool import Pool, PoolItem
from samtrain.data_engine.prefill import Prefiller
from samtrain.data_engine.records import Drawing, ImageWork, Origin, left_out, to_drawing
from samtrain.files import Done, digest, do_once
from samtrain.terminal import follow

log = logging.getLogger(__name__)

IMAGES_PER_SHARD = 1000
SAY_EVERY = 30.0  # seconds between two lines of the log


@dataclass(frozen=True, kw_only=True)
class Helpers:
    """Who works on images: an annotator, the model that helps, and what fills in masks first, if anything does.

    Both loaders are called only if an image is left to do.
    """

    annotator: Annotator
    origin: Origin
    load_predictor: Callable[[], Any]
    load_prefiller: Callable[[], Prefiller] | None = None


@dataclass(frozen=True, kw_only=True)
class Annotating:
    """Images of the pool, filled in and drawn; a file each in `folder`.

    number:  the round's
    earlier: the masks that images have from earlier rounds, by key
    on_error: "raise", or "skip" for images that cannot be read: logged, counted, and nothing is drawn in them
    """

    folder: Path
    pool: Pool
    items: Sequence[PoolItem]
    helpers: Helpers
    number: int
    earlier: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    on_error: str = "raise"

    @cached_property
    def predictor(self) -> Any:
        return self.helpers.load_predictor()

    @cached_property
    def prefiller(self) -> Prefiller | None:
        return self.helpers.load_prefiller() if self.helpers.load_prefiller else None

    def drawings(self) -> Done:
        """The list of drawings in the order of the items; masks stay run-length encoded."""
        said, done = time.monotonic(), []
        words = f"round {self.number}: annotating"
        for position, item in enumerate(follow(self.items, words, len(self.items))):
            path = self.folder / f"{position:06d}.json"
            done.append(do_once(path, partial(self._draw, position, item)))
            self._check_same_image(path, done[-1].result["key"], self.pool.key(item))
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                log.info("round %d: annotated %d of %d images", self.number, len(done), len(self.items))
        return Done([each.result for each in done], sum(each.wall for each in done))

    def _check_same_image(self, path: Path, drawn: str, chosen: str) -> None:
        if drawn != chosen:
            raise ValueError(
                f"{path} holds image {drawn}, now {chosen} is chosen in its place: the pool has "
                "changed since this run began. Bring it back (data.root), or begin a new run_dir"
            )

    def _draw(self, position: int, item: PoolItem) -> Drawing:
        """Encode once, fill in, let the annotator add what is missing."""
        try:
            record, image = self._read(item)
        except ValueError as error:
            if self.on_error == "raise":
                raise
            log.warning("left out: %s", error)
            return left_out(self.pool.key(item))
        objects = record.annotation["annotations"]
        earlier = self.earlier.get(record.key, [])
        locked = [each["segmentation"] for each in earlier]
        self.predictor.set_image(image)
        automatic = self.prefiller.fill_in(image, self.predictor, locked) if self.prefiller else []
        locked += [mask.segmentation for mask in automatic]
        drawn = self.helpers.annotator.annotate(ImageToAnnotate(record.key, image, objects, locked), self.predictor)
        work = ImageWork(record.key, drawn, automatic, earlier, [each["segmentation"] for each in objects])
        # unique over all rounds, and in 64 bits: a billion images a round, ten thousand masks an image
        first_id = (self.number * 10**9 + position) * 10**4
        return to_drawing(work, first_id=first_id, origin=self.helpers.origin)

    def _read(self, item: PoolItem) -> tuple[Record, np.ndarray]:
        record = self.pool.read(item)
        size = record.annotation["image"]
        return record, decode_image(record.image_bytes, size["width"], size["height"], record.name)


def write_shards(
    folder: Path, prefix: str, pool: Pool, items: Sequence[PoolItem], drawings: Sequence[Drawing]
) -> list[dict[str, Any]]:
    """Images with at least one mask, in their order, as SA-1B's tars: [{path, sha256, images, masks}].

    Equal drawings give equal bytes. Raises ValueError where nothing was drawn at all.
    """
    counts: list[int] = []
    with ShardWriter(folder, prefix, max_count=IMAGES_PER_SHARD) as writer:
        for item, drawing in zip(items, drawings, strict=True):
            if not drawing["annotations"]:
                continue
            record = pool.read(item)
            annotation = {"image": record.annotation["image"], "annotations": drawing["annotations"]}
            writer.write(record.key, record.image_bytes, record.ext, annotation)
            counts.append(len(drawing["annotations"]))
        paths = writer.close()
    if not paths:
        raise ValueError(
            f"not one mask was kept in {len(items)} images ({prefix}): do the images of the pool hold objects? "
            "Look at them with task=preview, or lower annotator.min_iou"
        )
    chunks = [counts[i : i + IMAGES_PER_SHARD] for i in range(0, len(counts), IMAGES_PER_SHARD)]
    return [
        {"path": str(path), "sha256": digest(path), "images": len(chunk), "masks": sum(chunk)}
        for path, chunk in zip(paths, chunks, strict=True)
    ]
