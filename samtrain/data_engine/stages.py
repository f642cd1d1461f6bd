"""What the data engine is told to do (stages of rounds), and what it asks its caller to do (`ModelTools`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from samtrain.data.datasets import Source
from samtrain.data_engine.interface import Annotator, RoundAnnotator
from samtrain.data_engine.prefill import BoxDetector, PrefillConfig
from samtrain.plain import from_plain

ASSISTED_MANUAL, SEMI_AUTOMATIC = "assisted_manual", "semi_automatic"
STAGES = (ASSISTED_MANUAL, SEMI_AUTOMATIC)  # in their order


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The config node `engine`.

    promote_metric:      the validation metric that decides about promotion; larger is better
    probe_images:        images of the probe of the assisted-manual rounds
    probe_images_stage_2: the same for the semi-automatic rounds, which have images of their own
    large_scale_jitter:  range of the random scale when the rounds train; None: no jitter
    """

    promote_metric: str
    probe_images: int
    probe_images_stage_2: int
    large_scale_jitter: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("probe_images", "probe_images_stage_2"):
            if getattr(self, name) < 0:
                raise ValueError(f"engine.{name} is {getattr(self, name)}: give 0 or more")
        jitter = self.large_scale_jitter
        if jitter is not None and not 0 < jitter[0] <= jitter[1]:
            raise ValueError(f"engine.large_scale_jitter is {list(jitter)}: give two ascending scales above 0, or null")


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """An entry of the config node `rounds`.

    number:               the key of the entry, which gives the order of the rounds
    model:                name of the model that the round trains
    images, steps:        images to annotate, and optimiser steps to train
    learning_rate_factor: factor on the recipe's learning rate
    detector_steps:       training steps of the detector; semi-automatic rounds need it
    """

    number: str
    stage: Literal["assisted_manual", "semi_automatic"]
    model: str
    images: int
    steps: int
    learning_rate_factor: float = 1.0
    detector_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.number.isdigit():
            raise ValueError(f"rounds.{self.number}: the rounds are named by whole numbers, which give their order")
        counts = {"images": self.images, "steps": self.steps}
        if self.stage == SEMI_AUTOMATIC:
            counts["detector_steps"] = self.detector_steps or 0
        for name, count in counts.items():
            if count < 1:
                value = getattr(self, name)
                raise ValueError(
                    f"rounds.{self.number}.{name} is {value}: give 1 or more, or leave the round out with ~rounds.{self.number}"
                )
        if not self.learning_rate_factor > 0:
            raise ValueError(f"rounds.{self.number}.learning_rate_factor is {self.learning_rate_factor}: give a number above 0")


def read_round(node: Any, name: str) -> RoundConfig:
    """Returns the entry `name`, such as "rounds.3", of the config node `rounds`."""
    if isinstance(node, dict) and "number" in node:
        raise ValueError(f"{name}.number is not a setting: the key of the entry is its number")
    number = name.rpartition(".")[2]
    return from_plain(RoundConfig, {**node, "number": number} if isinstance(node, dict) else node, name)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Images that every promoted model annotates again and that no model is trained on.

    annotator: one that does not leave images, so that all models are compared on the same objects
    """

    annotator: Annotator
    images: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Rounds of one kind on one pool of local tars.

    prefill: how masks are prefilled before the annotator sees an image; None: they are not
    """

    name: str
    rounds: list[RoundConfig]
    pool: list[str]
    annotator: Annotator | RoundAnnotator
    probe: Probe | None = None
    prefill: PrefillConfig | None = None


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """One training of a SAM: `task=fit` asks for one, the data engine for one per round. It resumes what `directory` holds.

    model:               the size to train; None: the size of `init`
    init:                the checkpoint to start from; None: a new model
    train, val:          shards to train on and to validate on; the engine leaves `val` to its caller
    steps:               optimiser steps; None: the recipe's
    learning_rate_factor: factor on the recipe's learning rate
    native:              images are seen in their own pixels, by crops, instead of resized to the input
    large_scale_jitter:  range of the random scale; None: no jitter
    images_seen:         images that earlier rounds have trained on
    model_key:           the config key that errors about the model name
    """

    directory: Path
    model: str | None
    init: Path | None
    train: list[Source]
    val: list[str] = field(default_factory=list)
    steps: int | None
    learning_rate_factor: float = 1.0
    native: bool = False
    large_scale_jitter: list[float] | None = None
    images_seen: int = 0
    model_key: str = "model.name"

    @property
    def frame(self) -> str:
        """How images are shown to the model: `SamConfig.frame`."""
        return "native" if self.native else "resize"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.directory / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        """The checkpoint that a killed training resumes from."""
        return self.directory / "checkpoints" / "last.ckpt"


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The result of a training.

    checkpoint, last: the best checkpoint and the last one
    metrics:          validation metrics of the best
    images_seen:      images seen since the run began
    seconds:          wall-clock time of the training
    """

    checkpoint: Path
    last: Path
    metrics: dict[str, float]
    images_seen: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DetectorRequest:
    """One training of a detector, from `init` (None: a new one), on the boxes of all masks in `shards`.

    Of an image that is in several shards, only the last record counts.
    """

    directory: Path
    init: Path | None
    shards: list[str]
    steps: int


class ModelTools(Protocol):
    """What the engine needs from its caller: training, measuring and loading of models and detectors.

    Only stages that prefill masks call the two methods for detectors.
    """

    def load_predictor(self, checkpoint: Path) -> Any:
        """Returns a `SamPredictor` of a checkpoint."""
        ...

    def fit(self, request: FitRequest) -> FitResult: ...

    def measure(self, checkpoint: Path) -> dict[str, float]:
        """Returns the validation metrics of a checkpoint."""
        ...

    def fit_detector(self, request: DetectorRequest) -> Path:
        """Returns the file of the trained detector."""
        ...

    def load_detector(self, path: Path) -> BoxDetector: ...
