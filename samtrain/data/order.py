"""The order of training samples is a function of the position, so that nothing is saved and workers change nothing.

A *virtual epoch* shows each source as often as its weight says. Its shards are shuffled with the sources evenly mixed; then
the samples are shuffled within blocks of consecutive shards, so that reads stay local. A set of up to `block_shards` shards
is one block, and then its order does not depend on how the images are divided into shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

SHARD_ORDER, BLOCK_ORDER = 0x5A4D5348, 0x5A4D424C  # tags that separate these draws from those of the samples


@dataclass(frozen=True)
class _Epoch:
    """Holds the P pieces of a virtual epoch in order: (P,) shards, repetitions, sample counts; and the ends of the blocks."""

    shards: np.ndarray
    repetitions: np.ndarray
    counts: np.ndarray
    block_ends: np.ndarray


class EndlessBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields batches of (epoch, index) without end; batch k of a rank is a function of (seed, k, rank, world_size).

    `epoch` is different each time a sample is shown, so that its own random draws differ. The ranks share global batch k.

    shard_lengths: for each source, the number of samples in each of its shards; `index` counts through them in this order
    weights:       how often a source is shown per virtual epoch; a fraction is drawn again for each epoch
    block_shards:  how many consecutive shards are shuffled together
    """

    def __init__(
        self,
        *,
        shard_lengths: Sequence[Sequence[int]],
        weights: Sequence[float] | None = None,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        block_shards: int = 16,
    ) -> None:
        weights = [1.0] * len(shard_lengths) if weights is None else list(weights)
        _check(shard_lengths, weights, batch_size, block_shards)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.start_step, self.block_shards = start_step, block_shards
        self._sources = [np.asarray(lengths, dtype=np.int64) for lengths in shard_lengths]
        self._weights = weights
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate(self._sources))])
        self._repeats = max(math.ceil(weight) for weight in weights)
        self.epoch_length = sum(map(_count_shown, self._sources, weights))
        self._cache: dict[str, tuple] = {}

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> list[tuple[int, int]]:
        """Returns the (epoch, index) pairs of this rank's part of global batch `step`."""
        first = (step * self.world_size + self.rank) * self.batch_size
        return [self.at(first + i) for i in range(self.batch_size)]

    def at(self, position: int) -> tuple[int, int]:
        """Returns the (epoch, index) pair at a position in the endless sequence of all ranks' samples."""
        epoch, offset = divmod(position, self.epoch_length)
        plan = self._cached("epoch", self._plan, epoch)
        block = int(np.searchsorted(plan.block_ends, offset, side="right"))
        indexes, repetitions = self._cached("block", self._block, epoch, block)
        place = offset - (int(plan.block_ends[block - 1]) if block else 0)
        return epoch * self._repeats + int(repetitions[place]), int(indexes[place])

    def _cached(self, what: str, make, *key: int):
        """Returns `make(*key)` and keeps the last result only, which suffices because positions come in order."""
        if self._cache.get(what, (None,))[0] != key:
            self._cache[what] = (key, make(*key))
        return self._cache[what][1]

    def _plan(self, epoch: int) -> _Epoch:
        """Shuffles the shards of a virtual epoch, with each source spread evenly over it."""
        rng = np.random.default_rng([SHARD_ORDER, self.seed, epoch])
        # place the pieces of each source in random order, one per interval of equal length
        columns: list[tuple[np.ndarray, ...]] = []
        first_shard = 0
        for lengths, weight in zip(self._sources, self._weights, strict=True):
            shards, repetitions, counts = _repeat_shards(lengths, weight, rng)
            order = rng.permutation(len(shards))
            place = (order + rng.random(len(shards))) / max(len(shards), 1)
            columns.append((place, shards + first_shard, repetitions, counts))
            first_shard += len(lengths)
        # merge the sources by place, and cut the result into blocks
        place, shards, repetitions, counts = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.argsort(place, kind="stable")
        ends = np.cumsum(counts[order])
        last_of_block = np.append(np.arange(self.block_shards - 1, len(ends) - 1, self.block_shards), len(ends) - 1)
        return _Epoch(shards[order], repetitions[order], counts[order], ends[last_of_block])

    def _block(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the shuffled (indexes, repetitions) of the samples in one block of shards."""
        plan = self._cached("epoch", self._plan, epoch)
        rng = np.random.default_rng([BLOCK_ORDER, self.seed, epoch, block])
        pieces = slice(block * self.block_shards, (block + 1) * self.block_shards)
        # all samples of the block's shards, or a random part of them
        indexes = []
        for shard, count in zip(plan.shards[pieces].tolist(), plan.counts[pieces].tolist(), strict=True):
            start, length = int(self._starts[shard]), int(self._starts[shard + 1] - self._starts[shard])
            some = np.arange(length) if count == length else rng.choice(length, count, replace=False)
            indexes.append(start + some)
        index, repetition = np.concatenate(indexes), np.repeat(plan.repetitions[pieces], plan.counts[pieces])
        # sort before shuffling, so that the order of the shards has no influence within a block
        order = np.lexsort((repetition, index))[rng.permutation(len(index))]
        return index[order], repetition[order]


def _repeat_shards(lengths: np.ndarray, weight: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Returns (shard, repetition, number of samples) of one source's pieces.

    Full repetitions take each shard entirely. For the remaining fraction each shard gives its share, rounded by a random
    offset in such a way that every epoch has the same length: the epoch of a position is then a division.
    """
    whole = int(weight)
    shards, repetitions = np.tile(np.arange(len(lengths)), whole), np.repeat(np.arange(whole), len(lengths))
    counts = np.tile(lengths, whole)
    total = int(lengths.sum())
    left = _count_shown(lengths, weight) - whole * total
    if left:
        ends = np.concatenate([[0], np.cumsum(lengths)])
        shares = np.diff((left * ends + rng.integers(total)) // total)
        shards = np.append(shards, np.arange(len(lengths)))
        repetitions, counts = np.append(repetitions, np.full(len(lengths), whole)), np.append(counts, shares)
    return shards, repetitions, counts


def _count_shown(lengths: np.ndarray, weight: float) -> int:
    """Returns how many samples of one source a virtual epoch shows, which is at least one."""
    total = int(lengths.sum())
    return max(round(total * weight), 1) if total else 0


def _check(
    shard_lengths: Sequence[Sequence[int]], weights: Sequence[float], batch_size: int, block_shards: int
) -> None:
    if len(weights) != len(shard_lengths) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"data.train has the weights {list(weights)} for {len(shard_lengths)} sources: give each source a weight above 0 "
            "(10 shows it ten times, 0.5 half of it), and remove a source instead of giving it weight 0"
        )
    if sum(sum(lengths) for lengths in shard_lengths) == 0:
        raise ValueError("all shards of data.train are empty: give shards that hold images")
    if batch_size < 1 or block_shards < 1:
        raise ValueError(f"loader.batch_size is {batch_size} and block_shards is {block_shards}: give 1 or more for both")
