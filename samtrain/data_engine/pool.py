"""The pool: the images that each round annotates, and those kept for the probe, as a function of the seed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from samtrain.data.shards import Record, ShardIndex, index_tar, is_remote, read_record

log = logging.getLogger(__name__)

MAX_PROBE_SHARE = 0.2  # of the pool: small pools are for annotating (assumption)


@dataclass(frozen=True)
class PoolItem:
    """An image of the pool, which is record `index` of tar number `tar`."""

    tar: int
    index: int


@dataclass(frozen=True)
class Selection:
    """The images of the probe and of each round; no image is in two of them."""

    probe: list[PoolItem]
    rounds: list[list[PoolItem]]


class Pool:
    """Local tars with images to annotate.

    Raises ValueError for URLs, for two images of the same name and, unless `on_error` is "skip", for truncated tars.
    """

    def __init__(self, tars: Sequence[str], on_error: str = "raise") -> None:
        if remote := [tar for tar in tars if is_remote(tar)]:
            raise ValueError(f"the pool is remote ({remote[0]}), but images are read by number: copy the tars to a disk")
        self.indices: list[ShardIndex] = [index_tar(tar, on_error=on_error) for tar in tars]
        keys = np.concatenate([index.keys for index in self.indices]) if self.indices else np.array([])
        names, counts = np.unique(keys, return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"the pool holds {int((counts > 1).sum())} names twice, such as {names[counts > 1][0].decode()!r}: "
                "give every image its own name and every tar once (data.root)"
            )

    def __len__(self) -> int:
        return sum(len(index) for index in self.indices)

    def items(self) -> list[PoolItem]:
        """Returns all images in the order of the tars."""
        return [PoolItem(tar, i) for tar, index in enumerate(self.indices) for i in range(len(index))]

    def key(self, item: PoolItem) -> str:
        return self.indices[item.tar].key(item.index)

    def place(self, item: PoolItem) -> tuple[str, int]:
        """Returns the tar that holds an image, and the number of its record there."""
        return self.indices[item.tar].path, item.index

    def read(self, item: PoolItem) -> Record:
        """Returns an image with its annotations; raises ValueError as `read_record` does."""
        return read_record(self.indices[item.tar], item.index)

    def select(
        self, images_by_round: Sequence[int], probe_images: int, seed: int, annotated: Collection[str] = frozenset()
    ) -> Selection:
        """Returns the images in an order drawn by `seed`: first those of the probe, then those of each round.

        Images that are `annotated` already (their keys) come last and are never in the probe. If a stage before has used
        the whole pool except its probe, the probe consists of these images again and of those that got no mask.
        """
        items = self.items()
        drawn = [items[i] for i in np.random.default_rng(seed).permutation(len(items))]
        fresh = [item for item in drawn if self.key(item) not in annotated]
        probe, counts = divide_pool(len(items), images_by_round, min(probe_images, len(fresh)))
        order = fresh + [item for item in drawn if self.key(item) in annotated]
        ends = np.cumsum([probe, *counts])
        parts = [order[end - count : end] for end, count in zip(ends, [probe, *counts], strict=True)]
        return Selection(parts[0], parts[1:])


def divide_pool(size: int, images_by_round: Sequence[int], probe_images: int) -> tuple[int, list[int]]:
    """Returns how many of the pool's `size` images the probe and each round get.

    In a small pool all rounds get proportionally fewer than they ask for. Raises ValueError if a round would get none.
    """
    probe = min(probe_images, int(size * MAX_PROBE_SHARE))
    asked, left = sum(images_by_round), size - probe
    if asked <= left:
        return probe, list(images_by_round)

    # rounding the ends instead of the counts keeps their sum
    ends = [left * sum(images_by_round[: i + 1]) // asked for i in range(len(images_by_round))]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if min(counts) < 1:
        raise ValueError(
            f"the pool holds {size} images, too few for {len(counts)} rounds that ask for {asked}: "
            "add images (data.root, or data.splits for synthetic scenes), or leave rounds out"
        )
    log.warning(
        "The pool holds %d images and the rounds ask for %d: the rounds get %s, the probe gets %d.", size, asked, counts, probe
    )
    return probe, counts
