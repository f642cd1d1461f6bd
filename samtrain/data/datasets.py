"""Datasets of local shards: samples by (epoch, index), and their collation into a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from samtrain.data.decode import StoredImage
from samtrain.data.order import EndlessBatchSampler
from samtrain.data.remote import RemoteSamDataset
from samtrain.data.shards import Record, expand_urls, index_tar, is_remote, read_record
from samtrain.data.tar_index import check_on_error, last_records
from samtrain.data.transforms import Sample
from samtrain.types import Batch

__all__ = ["EndlessBatchSampler", "RemoteSamDataset", "SamDataset", "Source", "collate"]

logger = logging.getLogger(__name__)

Image = np.ndarray | StoredImage
Transform = Callable[[Image, Sequence[dict], int, np.random.Generator], Sample]
MAX_SUBSTITUTIONS = 100  # tries before the whole set is considered broken, as in SAM 2's dataset


@dataclass(frozen=True)
class Source:
    """Shards, and how often a virtual epoch shows their images.

    urls:        anything that `expand_urls` accepts
    weight:      10 shows each image ten times per virtual epoch, 0.5 shows half of the images
    last_counts: show only the last record of each key; an image is in several shards if masks were added to it later
    frame:       resize or native, how these images become the model's input (`data.frame`); None: as the other sources
    transform:   makes the samples of this source; None: the transform of the dataset
    """

    urls: str | Sequence[str]
    weight: float = 1.0
    last_counts: bool = False
    frame: str | None = None
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if self.frame not in (None, "resize", "native"):
            raise ValueError(f"a source in data.train has the frame {self.frame!r}: give resize or native, or leave it out")

    @classmethod
    def of(cls, value: Source | Mapping[str, Any] | str) -> Source:
        """Returns a source from a `{urls, weight, frame}` node of the config, from urls alone, or unchanged."""
        if isinstance(value, Source):
            return value
        if not isinstance(value, Mapping):
            return cls(value)
        if not {"urls"} <= set(value) <= {"urls", "weight", "frame"}:
            raise ValueError(f"a source in data.train has the keys {', '.join(sorted(value))}: give urls, weight and frame")
        return cls(**value)


class SamDataset(Dataset):
    """Reads images of local shards with randomly drawn masks; `dataset.get(epoch, index)` always returns the same sample.

    Loaders ask for `dataset[epoch, index]`; `dataset[index]` is epoch 0. A record that cannot be read raises ValueError with
    its file and key. With on_error="skip" it is logged, counted in `num_skipped` and replaced by another record, always the
    same one. `cache_images` keeps decoded images, at most `cache_bytes` over all workers. `reduced_jpeg` decodes JPEGs no
    larger than the window needs, which is faster but gives slightly different pixels.

    With empty_images=False an image without objects is replaced in the same way, and counted in `num_empty`.
    """

    def __init__(
        self,
        sources: Sequence[Source | Mapping[str, Any] | str],
        transform: Transform,
        *,
        max_masks: int = 64,
        seed: int = 0,
        on_error: str = "raise",
        cache_images: bool = False,
        cache_bytes: int = 1 << 30,
        reduced_jpeg: bool = False,
        empty_images: bool = True,
    ) -> None:
        check_on_error(on_error)
        if reduced_jpeg and cache_images:
            raise ValueError(
                "loader.reduced_jpeg and loader.cache_images are both true, but a reduced image fits one window only: set one "
                "of them to false"
            )
        self.reduced_jpeg = reduced_jpeg
        # index the shards of all sources
        self.sources = [Source.of(source) for source in sources]
        urls = [_local(expand_urls(source.urls)) for source in self.sources]
        shards = [[index_tar(path, on_error=on_error) for path in paths] for paths in urls]
        shards = [last_records(own) if source.last_counts else own for source, own in zip(self.sources, shards, strict=True)]
        self.shards = [shard for own in shards for shard in own]
        self.shard_lengths = [[len(shard) for shard in own] for own in shards]
        self.weights = [source.weight for source in self.sources]
        self.transforms = [source.transform or transform for source, own in zip(self.sources, shards, strict=True) for _ in own]
        self.max_masks, self.seed, self.on_error = max_masks, seed, on_error
        self.empty_images = empty_images
        self._ends = np.cumsum([len(shard) for shard in self.shards], dtype=np.int64)
        if len(self) == 0:
            names = [source.urls for source in self.sources]
            raise ValueError(f"{names} hold no complete records: prepare the data set, or check the URLs in data.train")
        # the counts are shared by all workers, the cache is not
        self._skips = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._empties = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._logged: set[int] = set()
        self._cache: dict[int, tuple] = {}
        self._room = cache_bytes if cache_images else 0

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int | tuple[int, int]) -> Sample:
        return self.get(*index) if isinstance(index, tuple) else self.get(0, index)

    @property
    def num_skipped(self) -> int:
        """Returns the number of reads replaced because of a broken record, plus the number of faults in the tars."""
        return int(self._skips) + sum(len(shard.problems) for shard in self.shards)

    @property
    def num_empty(self) -> int:
        """Returns the number of reads replaced because the image has no object."""
        return int(self._empties)

    def get(self, epoch: int, index: int) -> Sample:
        """Returns a sample as a pure function of (seed, epoch, index); see the class for records that are replaced."""
        for attempt in range(MAX_SUBSTITUTIONS):
            # a trailing zero changes nothing: attempt 0 draws from (seed, epoch, index)
            rng = np.random.default_rng([self.seed, epoch, index, attempt])
            chosen = index if attempt == 0 else int(rng.integers(len(self)))
            try:
                sample = self._sample(chosen, rng)
            except ValueError as error:
                if self.on_error == "raise":
                    raise
                self._count_skip(chosen, error)
                continue
            if sample is not None:
                return sample
            self._count_empty(chosen)
        raise ValueError(
            f"{MAX_SUBSTITUTIONS} records in a row cannot be read or hold no object, the last one is {self.name(chosen)}: "
            "check the shards with task=validate_dataset"
        )

    def record(self, index: int) -> Record:
        """Returns the record as stored: the bytes of its image, and its JSON."""
        number, i = self._place(index)
        return read_record(self.shards[number], i)

    def name(self, index: int) -> str:
        """Returns the name of a record in messages."""
        number, i = self._place(index)
        return f"{self.shards[number].path}, record {self.shards[number].key(i)}"

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the number of a record's shard, and the record's number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} records")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def _sample(self, index: int, rng: np.random.Generator) -> Sample | None:
        """Returns the sample of a record, None for an image without objects that is not wanted."""
        image, annotations, key = self._image(index)
        if not annotations and not self.empty_images:
            return None
        try:
            sample = self.transforms[self._place(index)[0]](image, annotations, self.max_masks, rng)
        except ValueError as error:
            name = self.name(index)
            raise ValueError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error
        sample.key = key
        return sample

    def _image(self, index: int) -> tuple[Image, list[dict], str]:
        """Returns the decoded image, its annotations and its key, from the cache if possible."""
        if index in self._cache:
            return self._cache[index]
        record = self.record(index)
        size = record.annotation["image"]
        stored = StoredImage(record.image_bytes, size["width"], size["height"], record.name)
        if self.reduced_jpeg:
            return stored, record.annotation["annotations"], record.key
        # decode, and keep the image if there is room
        image, _ = stored.decode(1.0)
        found = image, record.annotation["annotations"], record.key
        worker = get_worker_info()
        cost = image.nbytes * (worker.num_workers if worker else 1)  # each worker has its own cache
        if cost <= self._room:
            self._room -= cost
            self._cache[index] = found
        return found

    def _count_skip(self, index: int, error: ValueError) -> None:
        self._skips += 1
        if index not in self._logged:
            self._logged.add(index)
            logger.warning("A record was skipped and replaced by another one: %s", error)

    def _count_empty(self, index: int) -> None:
        if not self._empties:
            logger.info("Images without objects are replaced by others (data.empty_images); one is %s.", self.name(index))
        self._empties += 1


def _local(urls: list[str]) -> list[str]:
    remote = [url for url in urls if is_remote(url)]
    if remote:
        raise ValueError(
            f"data.train mixes local shards with {remote[0]}, which has to be streamed: download it, or stream all shards"
        )
    return urls


def collate(samples: Sequence[Sample]) -> Batch:
    """Returns one batch of samples; if none has an object, an empty one of weight 0 is added, so that N is never 0."""
    images, masks = torch.stack([s.image for s in samples]), torch.cat([s.masks for s in samples])
    image_index = torch.repeat_interleave(torch.tensor([len(s.masks) for s in samples]))
    weights = torch.ones(len(masks))
    if len(masks) == 0:
        masks = masks.new_zeros(1, *masks.shape[1:])
        image_index, weights = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    return Batch(
        images=images,
        masks=masks,
        image_index=image_index,
        weights=weights,
        input_sizes=torch.tensor([s.input_size for s in samples]),
        original_sizes=torch.tensor([s.original_size for s in samples]),
        keys=[s.key for s in samples],
        objects=[s.objects for s in samples],
    )
