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
from samtrain.data_engine.interface import (
    AutomaticMask,
    ImageAnnotation,
    ImageOfRound,
    ImageToAnnotate,
    RoundAnnotator,
    RoundToAnnotate,
)
from samtrain.data_engine.pool import Pool, PoolItem
from samtrain.data_engine.prefill import Prefiller
from samtrain.data_engine.records import Drawing, ImageWork, Origin, left_out, to_drawing
from samtrain.files import Done, digest, read_done, write_done
from samtrain.terminal import follow

log = logging.getLogger(__name__)

IMAGES_PER_SHARD = 1000
LOG_INTERVAL = 30.0  # seconds between two lines of the log


@dataclass(frozen=True, kw_only=True)
class Helpers:
    """Who works on the images: the annotator, the model that helps, and the prefiller, if masks are prefilled.

    origin:     identifies the model and the detector in the records of their masks
    checkpoint: the file of the model
    The two loaders are called only if an image is still to be annotated.
    """

    annotator: RoundAnnotator
    origin: Origin
    checkpoint: Path
    load_predictor: Callable[[], Any]
    load_prefiller: Callable[[], Prefiller] | None = None


@dataclass(frozen=True, kw_only=True)
class Annotating:
    """Prefills and annotates images of the pool; the drawing of each is one file in `folder`.

    number:   number of the round
    stage:    name of its stage
    earlier:  masks of earlier rounds, by the key of the image
    splits:   "val" or "test", by the key, for images that are never trained on
    on_error: "raise", or "skip" for images that cannot be read: they are logged, counted, and get no masks
    """

    folder: Path
    pool: Pool
    items: Sequence[PoolItem]
    helpers: Helpers
    number: int
    stage: str = ""
    earlier: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    on_error: str = "raise"

    @cached_property
    def predictor(self) -> Any:
        return self.helpers.load_predictor()

    @property
    def prefills(self) -> bool:
        return self.helpers.load_prefiller is not None

    @cached_property
    def prefiller(self) -> Prefiller | None:
        return self.helpers.load_prefiller() if self.helpers.load_prefiller else None

    def drawings(self) -> Done:
        """Returns the drawings in the order of the items; their masks are run-length encoded."""
        positions = range(len(self.items))
        self._check_same_images()
        missing = [position for position in positions if not self._path(position).is_file()]
        if missing:
            self._annotate(missing)
        done = [read_done(self._path(position)) for position in positions]
        return Done([each.result for each in done], sum(each.wall for each in done))

    def _annotate(self, missing: Sequence[int]) -> None:
        """Lets the annotator annotate these items, and writes each drawing as soon as it is there."""
        work = RoundToAnnotate(
            number=self.number,
            stage=self.stage,
            num_images=len(self.items),
            images=[self._image(position) for position in missing],
            checkpoint=self.helpers.checkpoint,
            digest=self.helpers.origin.model,
            predictor=lambda: self.predictor,
        )
        begin = logged = time.monotonic()
        annotated = self.helpers.annotator.annotate_round(work)
        for count, (position, annotation) in enumerate(follow(annotated, f"round {self.number}: annotating", len(missing)), 1):
            drawing = self._drawing(position, annotation)
            now = time.monotonic()
            write_done(self._path(position), Done(drawing, round(now - begin, 3)))
            begin = now
            if now - logged > LOG_INTERVAL:
                logged = now
                number = len(self.items) - len(missing) + count
                log.info("round %d: annotated %d of %d images", self.number, number, len(self.items))
        if left := [position for position in missing if not self._path(position).is_file()]:
            kind = type(self.helpers.annotator)
            raise ValueError(
                f"annotator._target_: {kind.__module__}.{kind.__qualname__} has left out {len(left)} of {len(missing)} images: "
                "let annotate_round yield every position"
            )

    def _image(self, position: int) -> ImageOfRound:
        item = self.items[position]
        key = self.pool.key(item)
        return ImageOfRound(
            position=position,
            key=key,
            place=self.pool.place(item),
            split=self.splits.get(key, "train"),
            earlier=self.earlier.get(key, []),
            read=partial(self._load, item, encode=self.prefills),
            load=partial(self._load, item, encode=True),
        )

    def _load(self, item: PoolItem, *, encode: bool) -> ImageToAnnotate | None:
        """Decodes an image, encodes it once if it is to be clicked or prefilled, and prefills masks."""
        try:
            record, image = self._read(item)
        except ValueError as error:
            if self.on_error == "raise":
                raise
            log.warning("An image is left out: %s", error)
            return None

        # masks that exist are shown to the annotator, who does not change them
        locked = [each["segmentation"] for each in self.earlier.get(record.key, [])]
        if encode:
            self.predictor.set_image(image)
        automatic = self.prefiller.prefill(image, self.predictor, locked) if self.prefiller else []
        self._prefilled[record.key] = automatic
        locked += [mask.segmentation for mask in automatic]
        return ImageToAnnotate(record.key, image, record.annotation["annotations"], locked, automatic)

    def _drawing(self, position: int, drawn: ImageAnnotation | None) -> Drawing:
        """Returns all masks of an image as plain JSON, with the work that they took."""
        key = self.pool.key(self.items[position])
        automatic = self._prefilled.pop(key, [])
        if drawn is None:
            return left_out(key)
        work = ImageWork(
            key=key,
            drawn=drawn,
            automatic=automatic if drawn.prefilled is None else drawn.prefilled,
            earlier=self.earlier.get(key, []),
            objects=[each["segmentation"] for each in self.pool.read(self.items[position]).annotation["annotations"]],
        )
        # ids are unique over all rounds and fit into 64 bits: up to a billion images per round, ten thousand masks per image
        first_id = (self.number * 10**9 + position) * 10**4
        return to_drawing(work, first_id=first_id, origin=self.helpers.origin)

    @cached_property
    def _prefilled(self) -> dict[str, list[AutomaticMask]]:
        """The masks that images were prefilled with, by their keys, until their drawings are written."""
        return {}

    def _path(self, position: int) -> Path:
        return self.folder / f"{position:06d}.json"

    def _check_same_images(self) -> None:
        """Raises ValueError if a drawing of an earlier process is of another image than is chosen at its place."""
        for position, item in enumerate(self.items):
            path, chosen = self._path(position), self.pool.key(item)
            if path.is_file() and (drawn := read_done(path).result["key"]) != chosen:
                raise ValueError(
                    f"{path} holds the masks of image {drawn}, but {chosen} is chosen at its place: the pool has "
                    "changed since this run began. Restore the images (data.root), or start again in a new run_dir"
                )

    def _read(self, item: PoolItem) -> tuple[Record, np.ndarray]:
        record = self.pool.read(item)
        size = record.annotation["image"]
        return record, decode_image(record.image_bytes, size["width"], size["height"], record.name)


def write_shards(
    folder: Path, prefix: str, pool: Pool, items: Sequence[PoolItem], drawings: Sequence[Drawing]
) -> list[dict[str, Any]]:
    """Writes the images with at least one mask as tars in the form of SA-1B; returns [{path, sha256, images, masks}].

    An image that lost all masks of earlier rounds is written, too, because its last record counts. Equal drawings give equal
    bytes. Raises ValueError if no image has a mask.
    """
    counts: list[int] = []
    with ShardWriter(folder, prefix, max_count=IMAGES_PER_SHARD) as writer:
        for item, drawing in zip(items, drawings, strict=True):
            if not drawing["annotations"] and not drawing.get("removed"):
                continue
            record = pool.read(item)
            annotation = {"image": record.annotation["image"], "annotations": drawing["annotations"]}
            writer.write(record.key, record.image_bytes, record.ext, annotation)
            counts.append(len(drawing["annotations"]))
        paths = writer.close()
    if not paths and any("annotators" in drawing for drawing in drawings):
        raise ValueError(
            f"nobody had accepted a mask in these {len(items)} images ({prefix}) when their round was closed, so there is "
            "nothing to learn from: start again in a new run_dir"
        )
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
