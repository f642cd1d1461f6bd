"""Review: automatic masks come into a store in the order of doubt, and what people made of them goes to `task=audit`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samtrain.annotator.store import Store, Work
from samtrain.annotator.tiles import read_pixels
from samtrain.annotator.transfer.importing import import_shards
from samtrain.annotator.transfer.review import disagreements, export_corrections, order_by_doubt
from samtrain.terminal import follow

log = logging.getLogger(__name__)

MESSAGE = "Accept each mask that is right, correct or reject the others. The most doubtful come first."


def begin_review(store: Store, shards: str | Sequence[str], load_predictor: Callable[[], Any] | None) -> None:
    """Imports the masks of shards and puts them in the order of doubt.

    With `load_predictor`, masks that its model would draw otherwise are doubtful, too; each image is encoded once for that.
    An earlier start that has done this for all masks is not repeated.
    """
    log.info("Review: %s", import_shards(store, shards))
    images = store.images(state="open")
    if any(mask.doubt is None and mask.origin == "imported" for image in images for mask in store.masks(image.id)):
        found: dict[int, float] = {}
        if load_predictor is not None:
            predictor = load_predictor()
            for image in follow(images, "comparing masks with the model", len(images)):
                found |= disagreements(predictor, read_pixels(image), store.masks(image.id))
        order_by_doubt(store, found)
    store.set_work(Work(kind="review", message=MESSAGE))


def end_review(store: Store, folder: Path) -> None:
    """Writes what people have made of the masks so far, as `task=audit audit.corrected=` reads it."""
    counts = export_corrections(store, folder)
    log.info(
        "Of %d images, people have accepted %d masks, corrected %d, rejected %d and added %d: %s. Measure the masks with "
        "task=audit audit.corrected=%s.",
        *(counts[key] for key in ("images", "accepted", "corrected", "rejected", "added")), folder, folder,
    )  # fmt: skip
