"""The pool: which images a round annotates, and which are kept for the probe, as a function of the seed."""

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
    """An image of the pool: record `index` of tar number `tar`."""

    tar: int
    index: int


@dataclass(frozen=True)
class Selection:
    """Images of the probe, and of each round; none stands in two places."""

    probe: list[PoolItem]
    rounds: list[list[PoolItem]]


class Pool:
    """Local tars with images to annotate. Raises ValueError for URLs, for two images of one name and, unless `on_error`
    is "skip", for tars that are cut.
    """

    def __init__(self, tars: Sequence[str], on_error: str = "raise") -> None:
        if remote := [tar for tar in tars if is_remote(tar)]:
            raise ValueError(f"the pool is remote ({remote[0]}), but images are read by number: copy the tars to a disk")
        self.indices: list[ShardIndex] = [index_tar(tar, on_error=on_error) for tar in tars]
        keys = np.concatenate([index.keys for index in self.indices]) if self.indices else np.array([])
        names, counts = np.unique(keys, return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"the pool holds {int((counts > 1).sum())} names twice, {names[counts > 1][0].decode()!r} among them: "
                "give each image one name, or each tar once (data.root)"
            )

    def __len__(self) -> int:
        return sum(len(index) for index in self.indices)

    def key(self, item: PoolItem) -> str:
        return self.indices[item.tar].key(item.index)

    def read(self, item: PoolItem) -> Record:
        """Raises ValueError as `read_record` does."""
        return read_record(self.indices[item.tar], item.index)

    def select(
        self, images_by_round: Sequence[int], probe_images: int, seed: int, annotated: Collection[str] = frozenset()
    ) -> Selection:
        """The images in an order drawn by `seed`: first the probe's, then round after round.

        Images that are `annotated` (keys) come last and are never the probe's: where a stage before has taken all but
        its own probe, that is the probe again, with those that got no mask.
        """
        items = [PoolItem(tar, i) for tar, index in enumerate(self.indices) for i in range(len(index))]
        drawn = [items[i] for i in np.random.default_rng(seed).permutation(len(items))]
        fresh = [item for item in drawn if self.key(item) not in annotated]
        probe, counts = share_out(len(items), images_by_round, min(probe_images, len(fresh)))
        order = fresh + [item for item in drawn if self.key(item) in annotated]
        ends = np.cumsum([probe, *counts])
        parts = [order[end - count : end] for end, count in zip(ends, [probe, *counts], strict=True)]
        return Selection(parts[0], parts[1:])


def share_out(size: int, images_by_round: Sequence[int], probe_images: int) -> tuple[int, list[int]]:
    """How many images the probe and each round get of a pool of `size`; less than asked, in proportion, where it is
    small.

    Raises ValueError where a round would get none.
    """
    probe = min(probe_images, int(size * MAX_PROBE_SHARE))
    asked, left = sum(images_by_round), size - probe
    if asked <= left:
        return probe, list(images_by_round)
    ends = [left * sum(images_by_round[: i + 1]) // asked for i in range(len(images_by_round))]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if min(counts) < 1:
        raise ValueError(
            f"the pool holds {size} images, too few for {len(counts)} rounds that ask for {asked}: "
            "prepare more images (data.root; of synthetic scenes data.splits), or take fewer rounds"
        )
    log.warning("the pool holds %d images, the rounds ask for %d: they get %s, the probe %d", size, asked, counts, probe)
    return probe, counts
