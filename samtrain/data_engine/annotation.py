"""Annotates many images with one model, resumable after each image, and writes the masks as shards."""

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
LOG_INTERVAL = 30.0  # seconds between two lines of the log


@dataclass(frozen=True, kw_only=True)
class Helpers:
    """Who works on the images: the annotator, the model that helps, and the prefiller, if masks are prefilled.

    origin: identifies the model and the detector in the records of their masks
    The two loaders are called only if an image is still to be annotated.
    """

    annotator: Annotator
    origin: Origin
    load_predictor: Callable[[], Any]
    load_prefiller: Callable[[], Prefiller] | None = None


@dataclass(frozen=True, kw_only=True)
class Annotating:
    """Prefills and annotates images of the pool; the drawing of each is one file in `folder`.

    number:   number of the round
    earlier:  masks of earlier rounds, by the key of the image
    on_error: "raise", or "skip" for images that cannot be read: they are logged, counted, and get no masks
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
        """Returns the drawings in the order of the items; their masks are run-length encoded."""
        logged, done = time.monotonic(), []
        title = f"round {self.number}: annotating"
        for position, item in enumerate(follow(self.items, title, len(self.items))):
            path = self.folder / f"{position:06d}.json"
            done.append(do_once(path, partial(self._draw, position, item)))
            self._check_same_image(path, done[-1].result["key"], self.pool.key(item))
            if time.monotonic() - logged > LOG_INTERVAL:
                logged = time.monotonic()
                log.info("round %d: annotated %d of %d images", self.number, len(done), len(self.items))
        return Done([each.result for each in done], sum(each.wall for each in done))

    def _check_same_image(self, path: Path, drawn: str, chosen: str) -> None:
        if drawn != chosen:
            raise ValueError(
                f"{path} holds the masks of image {drawn}, but {chosen} is chosen at its place: the pool has "
                "changed since this run began. Restore the images (data.root), or start again in a new run_dir"
            )

    def _draw(self, position: int, item: PoolItem) -> Drawing:
        """Encodes an image once, prefills masks, and lets the annotator add those that are missing."""
        try:
            record, image = self._read(item)
        except ValueError as error:
            if self.on_error == "raise":
                raise
            log.warning("An image is left out: %s", error)
            return left_out(self.pool.key(item))

        # masks that exist are shown to the annotator, who does not change them
        earlier = self.earlier.get(record.key, [])
        locked = [each["segmentation"] for each in earlier]
        self.predictor.set_image(image)
        automatic = self.prefiller.prefill(image, self.predictor, locked) if self.prefiller else []
        locked += [mask.segmentation for mask in automatic]

        # the annotator draws the others
        objects = record.annotation["annotations"]
        drawn = self.helpers.annotator.annotate(ImageToAnnotate(record.key, image, objects, locked), self.predictor)
        work = ImageWork(record.key, drawn, automatic, earlier, [each["segmentation"] for each in objects])

        # ids are unique over all rounds and fit into 64 bits: up to a billion images per round, ten thousand masks per image
        first_id = (self.number * 10**9 + position) * 10**4
        return to_drawing(work, first_id=first_id, origin=self.helpers.origin)

    def _read(self, item: PoolItem) -> tuple[Record, np.ndarray]:
        record = self.pool.read(item)
        size = record.annotation["image"]
        return record, decode_image(record.image_bytes, size["width"], size["height"], record.name)


def write_shards(
    folder: Path, prefix: str, pool: Pool, items: Sequence[PoolItem], drawings: Sequence[Drawing]
) -> list[dict[str, Any]]:
    """Writes the images with at least one mask as tars in the form of SA-1B; returns [{path, sha256, images, masks}].

    Equal drawings give equal bytes. Raises ValueError if no image has a mask.
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
            f"no mask was kept in {len(items)} images ({prefix}): check with task=preview that the images of the pool hold "
            "objects, or lower annotator.min_iou"
        )
    chunks = [counts[i : i + IMAGES_PER_SHARD] for i in range(0, len(counts), IMAGES_PER_SHARD)]
    return [
        {"path": str(path), "sha256": digest(path), "images": len(chunk), "masks": sum(chunk)}
        for path, chunk in zip(paths, chunks, strict=True)
    ]
