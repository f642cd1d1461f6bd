"""Streams shards from URLs with webdataset: without end, mixed by weight, paired by name, and checked for cut streams.

A stream has no positions, so a resumed run sees other images than an uninterrupted one. Local shards have no such limit.
"""

from __future__ import annotations

import itertools
import logging
import shlex
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.gopen import gopen

from samtrain.data.decode import StoredImage
from samtrain.data.shards import Record, parse_annotation
from samtrain.data.tar_index import BLOCK, check_on_error, split_name
from samtrain.data.transforms import Sample

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 64  # records from which the next one is drawn

Pair = tuple[str, str, bytes, bytes]  # key, extension, image, JSON


class RemoteSamDataset(IterableDataset):
    """Yields samples from URLs without end; each worker of each rank streams its own shards, and weights repeat shards.

    Raises ValueError for a URL that would run a command (`pipe:`, and `s3://`, which runs the `aws` tool) unless `allow_pipe`
    is set. A record that cannot be read raises ValueError; with on_error="skip" it is left out, logged and counted in
    `num_skipped`. With empty_images=False images without objects are left out and counted in `num_empty`.

    sources:    (urls, weight) pairs
    start_step: draws another order for a resumed run
    """

    def __init__(
        self,
        sources: Sequence[tuple[Sequence[str], float]],
        transform: Callable[..., Sample],
        *,
        max_masks: int = 64,
        seed: int = 0,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        on_error: str = "raise",
        allow_pipe: bool = False,
        reduced_jpeg: bool = False,
        empty_images: bool = True,
    ) -> None:
        check_on_error(on_error)
        self.sources = [([_opened_as(url, allow_pipe) for url in urls], weight) for urls, weight in sources]
        self.transform, self.max_masks, self.on_error = transform, max_masks, on_error
        self.seeds, self.rank, self.world_size = (seed, start_step), rank, world_size
        self.reduced_jpeg, self.empty_images = reduced_jpeg, empty_images
        self._skips = torch.zeros(1, dtype=torch.int64).share_memory_()  # one count for all workers
        self._empties = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def num_skipped(self) -> int:
        """Returns how many records and shards have been left out."""
        return int(self._skips)

    @property
    def num_empty(self) -> int:
        """Returns how many images without objects have been left out."""
        return int(self._empties)

    def check_parts(self, num_workers: int) -> None:
        """Raises ValueError if a worker of some rank would have no shard to read."""
        workers, shards = max(num_workers, 1), len({url for urls, _ in self.sources for url in urls})
        if shards < self.world_size * workers:
            raise ValueError(
                f"data.train has {shards} remote shards for {self.world_size} ranks with {workers} workers each, but each "
                f"worker needs its own: set loader.num_workers to {shards // self.world_size} or less, or write "
                "more shards"
            )

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        self.check_parts(workers)
        part, parts = self.rank * workers + number, self.world_size * workers
        for epoch in itertools.count():
            # each worker of each rank takes every `parts`-th shard of the epoch
            mine = list(enumerate(self._order(epoch)))[part::parts]
            num_samples = 0
            for place, url in mine:
                for sample in self._samples(url, (*self.seeds, epoch, place)):
                    num_samples += 1
                    yield sample
            if mine and not num_samples:
                raise ValueError(f"{[url for _, url in mine]} contain no usable sample: the log above says why")

    def _order(self, epoch: int) -> list[str]:
        """Returns the URLs of a virtual epoch, equal on all ranks; the fraction of a weight is a probability per shard."""
        rng = np.random.default_rng([*self.seeds, epoch])
        shown = []
        for urls, weight in self.sources:
            repeats = int(weight) + (rng.random(len(urls)) < weight % 1)
            shown += [url for url, repeat in zip(urls, repeats.tolist(), strict=True) for _ in range(repeat)]
        return [shown[i] for i in rng.permutation(len(shown))]

    def _samples(self, url: str, seeds: tuple[int, ...]) -> Iterator[Sample]:
        """Yields the samples of one shard; a stream that breaks off yields those before the break."""
        for pair in _shuffled(self._pairs(url), SHUFFLE_BUFFER, np.random.default_rng(seeds)):
            sample = self._sample(pair, url, seeds)
            if sample is not None:
                yield sample

    def _pairs(self, url: str) -> Iterator[Pair]:
        """Yields the records of one shard and ends at a fault, so that the records in the shuffle buffer are still used."""
        try:
            yield from stream_pairs(url)
        except ValueError as error:
            self._skip(error)

    def _sample(self, pair: Pair, url: str, seeds: tuple[int, ...]) -> Sample | None:
        key, ext, image_bytes, json_bytes = pair
        name = f"{url}, record {key}"
        rng = np.random.default_rng([*seeds, zlib.crc32(key.encode(errors="surrogateescape"))])
        try:
            record = Record(key, ext, image_bytes, parse_annotation(json_bytes, name), url)
            if not record.annotation["annotations"] and not self.empty_images:
                self._empties += 1
                return None
            size = record.annotation["image"]
            stored = StoredImage(image_bytes, size["width"], size["height"], name)
            image = stored if self.reduced_jpeg else stored.decode(1.0)[0]
            sample = self.transform(image, record.annotation["annotations"], self.max_masks, rng)
        except ValueError as error:
            self._skip(error if str(error).startswith(name) else ValueError(f"{name}: {error}"))
            return None
        sample.key = key
        return sample

    def _skip(self, error: ValueError) -> None:
        if self.on_error == "raise":
            raise error
        self._skips += 1
        logger.warning("Skipped: %s", error)


def _opened_as(url: str, allow_pipe: bool) -> str:
    """Returns the URL as webdataset opens it; raises ValueError for a command that is not allowed."""
    scheme = url.split(":")[0]
    if scheme in ("http", "https"):
        return url
    if scheme not in ("pipe", "s3"):
        raise ValueError(f"{url} cannot be streamed: use http, https, s3 or pipe, or mount it as files")
    if not allow_pipe:
        raise ValueError(f"{url} runs a command on this machine: set data.allow_pipe=true if you trust its origin")
    return url if scheme == "pipe" else f"pipe:aws s3 cp {shlex.quote(url)} -"


def stream_pairs(url: str) -> Iterator[Pair]:
    """Yields the records of a shard in the order in which they become complete.

    Raises ValueError at the end of the shard if it is cut or has incomplete records.
    """
    waiting: dict[str, dict[str, tuple[str, bytes]]] = {}
    for name, data in _stream_members(url):
        key, ext = split_name(name)
        if not ext:
            continue
        halves = waiting.setdefault(key, {})
        halves["json" if ext == "json" else "image"] = (ext, data)
        if len(halves) == 2:
            del waiting[key]
            yield key, halves["image"][0], halves["image"][1], halves["json"][1]
    if waiting:
        key, halves = next(iter(waiting.items()))
        lacking = "image" if "json" in halves else "JSON"
        raise ValueError(f"{url} has {len(waiting)} incomplete records: {key} has no {lacking}, so write the tar again")


def _stream_members(url: str) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of the files in a streamed tar; raises ValueError if it cannot be opened or is cut."""
    try:
        with gopen(url) as stream:
            counted = _CountingStream(stream)
            with tarfile.open(fileobj=counted, mode="r|") as tar:  # type: ignore[call-overload]  # reads alone suffice
                while (member := tar.next()) is not None:
                    if member.isreg():
                        yield member.name, tar.extractfile(member).read()
                    tar.members = []  # tarfile would keep them all in memory
                complete = counted.total >= tar.offset + BLOCK  # the end mark is where the next header would be
                joined = complete and _has_more(tar.fileobj)
    except (OSError, tarfile.ReadError) as error:
        raise ValueError(f"{url} cannot be streamed as a tar ({error}): try it with curl, or download it") from error
    if not complete:
        raise ValueError(f"{url} is cut, because it has no end-of-archive mark: upload it again")
    if joined:
        raise ValueError(f"{url} holds data after its end-of-archive mark: if two tars were joined, upload them one by one")


def _has_more(stream: Any) -> bool:
    """Returns whether a stream holds anything but zeros, which fill a tar up to the size of a record."""
    while chunk := stream.read(1 << 16):
        if chunk.count(0) < len(chunk):
            return True
    return False


class _CountingStream:
    """Counts the bytes that are read from a stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.total = stream, 0

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.total += len(data)
        return data


def _shuffled(pairs: Iterable[Pair], size: int, rng: np.random.Generator) -> Iterator[Pair]:
    """Yields the pairs in random order, drawn from a buffer of `size`."""
    buffer: list[Pair] = []
    for pair in pairs:
        buffer.append(pair)
        if len(buffer) >= size:
            yield buffer.pop(int(rng.integers(len(buffer))))
    while buffer:
        yield buffer.pop(int(rng.integers(len(buffer))))
