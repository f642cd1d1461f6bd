"""What the data engine is told (stages of rounds) and what it asks its caller to do (requests)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtrain.data_engine.annotators import Annotator
from samtrain.data_engine.prefill import BoxDetector, PrefillConfig


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """One round: the model that it trains, images to annotate, steps to train, the rate (None: the recipe's).

    detector_steps: of the detector that fills in first, in stages that fill in
    """

    model: str
    images: int
    steps: int
    learning_rate: float | None = None
    detector_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Images that are annotated again with each promoted model, never trained on; its annotator finishes them."""

    annotator: Annotator
    images: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Rounds of one kind on one pool of local tars; with `prefill` masks are filled in before the annotator looks."""

    name: str
    rounds: list[RoundConfig]
    pool: list[str]
    annotator: Annotator
    probe: Probe | None = None
    prefill: PrefillConfig | None = None


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """Train `model` from `init` on `shards` (all masks so far) in `directory`; what lies there is gone on with.

    An image may stand in several shards, with more masks each time: its last record counts.
    """

    directory: Path
    round: int
    model: str
    init: Path | None
    shards: list[str]
    steps: int
    images_seen: int
    learning_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The best checkpoint and the last, the numbers of the best, images seen since the run began, seconds it took."""

    checkpoint: Path
    last: Path
    metrics: dict[str, float]
    images_seen: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DetectorRequest:
    """Train a detector from `init` (None: a new one) on the boxes of `shards`, as in FitRequest."""

    directory: Path
    init: Path | None
    shards: list[str]
    steps: int


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What the engine is given to work with; detectors are only asked for by stages that fill in."""

    load_predictor: Callable[[Path], Any]
    fit: Callable[[FitRequest], FitResult]
    measure: Callable[[Path], dict[str, float]]
    fit_detector: Callable[[DetectorRequest], Path]
    load_detector: Callable[[Path], BoxDetector]
