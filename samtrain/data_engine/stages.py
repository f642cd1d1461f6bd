"""What the data engine is told to do (stages of rounds), and what it asks its caller to do (`ModelTools`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from samtrain.data.datasets import Source
from samtrain.data_engine.annotators import Annotator
from samtrain.data_engine.prefill import BoxDetector, PrefillConfig


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """One round: the model that it trains, the number of images to annotate, and the steps to train.

    learning_rate:  None: the recipe's
    detector_steps: training steps of the detector, in stages that prefill masks
    model_key:      the config key that errors about the model name
    """

    model: str
    images: int
    steps: int
    learning_rate: float | None = None
    detector_steps: int = 0
    model_key: str = "rounds"


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
    annotator: Annotator
    probe: Probe | None = None
    prefill: PrefillConfig | None = None


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """One training of a SAM: `task=fit` asks for one, the data engine for one per round. It resumes what `directory` holds.

    model:               the size to train; None: the size of `init`
    init:                the checkpoint to start from; None: a new model
    train, val:          shards to train on and to validate on; the engine leaves `val` to its caller
    steps:               optimiser steps; None: the recipe's
    learning_rate:       the rate of all parts but the encoder; None: the recipe's
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
    learning_rate: float | None = None
    native: bool = False
    large_scale_jitter: list[float] | None = None
    images_seen: int = 0
    model_key: str = "model.name"

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
