"""The interface of a zero-shot experiment: it opens the images of a set, measures each one, and summarises a set's rows."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtrain.data.image_set import records
from samtrain.data.shards import expand_urls
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.files import digest
from samtrain.inference.frames import make_predictor
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.inference.predictor import SamPredictor
from samtrain.metrics.coco import COCO_SIZES
from samtrain.modeling.sam import Sam

Row = dict[str, Any]  # plain JSON
MakeGenerator = Callable[[Sam], SamAutomaticMaskGenerator]


@dataclass(frozen=True)
class Part:
    """One data set that is measured with one checkpoint; the metrics of a part begin with its `name`."""

    name: str
    sources: list[str]
    checkpoint: str


class Evaluator(ABC):
    """One of the paper's zero-shot experiments.

    Every image becomes rows of plain JSON, and all metrics are computed from the rows of a set. This way a killed run can
    continue with the next image, and anyone can ask their own questions of the rows.

    config:          the `zero_shot` node
    seed:            decides which objects are drawn (`max_masks`), where random clicks fall, and the bootstrap
    size_limits:     areas in pixels that separate small, medium and large objects
    on_error:        raise, or skip to leave out records that cannot be read
    make_generator:  makes the mask generator of the experiments that prompt with a grid of clicks
    """

    def __init__(
        self,
        config: ZeroShotConfig | None = None,
        *,
        seed: int = 0,
        size_limits: tuple[float, float] = COCO_SIZES,
        on_error: str = "raise",
        make_generator: MakeGenerator = SamAutomaticMaskGenerator,
    ) -> None:
        self.config = config or ZeroShotConfig()
        self.seed, self.size_limits, self.on_error = seed, size_limits, on_error
        self.make_generator = make_generator

    # ---- what is measured

    has_default_set = True  # the test split of `data` can be measured if `zero_shot.sets` is empty

    def locate(self, given: str | list[str]) -> list[str]:
        """Returns the files of a set from what `zero_shot.sets` says; raises ValueError if there are none."""
        return expand_urls(given)

    def parts(self, sets: Mapping[str, list[str]], checkpoint: str | None) -> list[Part]:
        """Returns what is measured: here each set with the one checkpoint."""
        if checkpoint is None:
            raise ValueError("checkpoint is null: a zero-shot experiment needs one, checkpoint=FILE")
        return [Part(name, sources, checkpoint) for name, sources in sets.items()]

    def check(self, part: Part) -> None:  # noqa: B027, most experiments need nothing
        """Raises ValueError if the set cannot be measured; called before any image is encoded."""

    def inputs(self, parts: Sequence[Part]) -> dict[str, str]:
        """Returns what identifies each file that decides rows: a digest of weights and tables, size and time of tars."""
        found = {part.checkpoint: digest(part.checkpoint) for part in parts}
        for source in sorted({source for part in parts for source in part.sources}):
            stat = os.stat(source)
            found[source] = f"{stat.st_size} bytes of {stat.st_mtime_ns}"
        return found | {table: digest(table) for table in (self.config.boxes, self.config.groups) if table is not None}

    # ---- how it is measured

    def open(self, part: Part) -> Iterator[Any]:
        """Yields the images of a set in a fixed order; each has a `key`."""
        return records(part.sources, self.on_error)

    @abstractmethod
    def load(self, sam: Sam) -> None:
        """Takes the model that the following calls of `rows` measure."""

    @abstractmethod
    def rows(self, image: Any) -> list[Row]:
        """Returns the rows of one image, none if there is nothing to measure in it."""

    @abstractmethod
    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns the metrics of a set, computed from all of its rows."""

    def objects(self, row: Row) -> list[Row]:
        """Returns one row per object from a row of `rows`, for tables of objects."""
        return [row]


class PredictorEvaluator(Evaluator):
    """An experiment that prompts the predictor, which shows images as in the model's training or as `native` says."""

    predictor: SamPredictor

    def load(self, sam: Sam) -> None:
        self.predictor = make_predictor(sam, frame={None: None, True: "native", False: "resize"}[self.config.native])


class GeneratorEvaluator(Evaluator):
    """An experiment on the masks that the mask generator makes of a grid of clicks."""

    generator: SamAutomaticMaskGenerator

    def load(self, sam: Sam) -> None:
        self.generator = self.make_generator(sam)


def check_file(path: str | None, key: str) -> None:
    """Raises ValueError if the config key names a file that does not exist."""
    if path is not None and not Path(path).is_file():
        raise ValueError(f"{key} is {path!r}, and there is no file of that name: give the path of an existing file")
