"""The rounds of the data engine: prefill, annotate, train, measure, record.

Every step leaves its result on disk (`files.do_once`), so a run that was killed repeats only the step it was in. Nothing here
knows Hydra or Lightning: training, measuring and loading are the caller's (`stages.ModelTools`).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samtrain.data.datasets import Source
from samtrain.data_engine.engine_files import EngineFiles, Weights, identify
from samtrain.data_engine.ledger import append_line, finite, promoted, read_ledger
from samtrain.data_engine.ledger_line import LedgerLine, ProbeResult, Promotion, RoundDetector, RoundModel, Shard, Totals
from samtrain.data_engine.records import Drawing, summarise_coverage, summarise_probe, summarise_round
from samtrain.data_engine.stage_images import StageImages
from samtrain.data_engine.stages import ASSISTED_MANUAL, DetectorRequest, FitRequest, ModelTools, RoundConfig, Stage
from samtrain.files import Done, atomic_path, digest, do_once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Round:
    """A round that is running.

    number: its number in the run
    index:  its number in its stage, from 0
    ledger: the lines of the rounds before
    """

    number: int
    index: int
    images: StageImages
    ledger: list[LedgerLine]

    @property
    def stage(self) -> Stage:
        return self.images.stage

    @property
    def config(self) -> RoundConfig:
        return self.stage.rounds[self.index]

    @property
    def parent(self) -> LedgerLine:
        """The line of the promoted model: it helps to annotate, and training starts from it."""
        return promoted(self.ledger)

    @property
    def helper(self) -> Weights:
        """The promoted model itself."""
        return Weights(self.parent.model.checkpoint, self.parent.model.digest)

    @property
    def opens_stage(self) -> bool:
        return self.ledger[-1].stage != self.stage.name


@dataclass(frozen=True)
class _Annotation:
    """The drawings of a round's images, the shards written from them, and the wall-clock seconds of both."""

    drawings: list[Drawing]
    shards: list[dict[str, Any]]
    wall: dict[str, float]


@dataclass(frozen=True)
class _Training:
    """The model that a round has trained, the images seen since the run began, and the wall-clock seconds of the training."""

    model: Weights
    images_seen: int
    wall: float


@dataclass(frozen=True)
class _Measurement:
    """Validation metrics, whether they are better than the promoted model's, the probe's results, and wall-clock seconds."""

    metrics: dict[str, float | None]
    better: bool
    probe: ProbeResult
    probe_before: ProbeResult | None
    wall: dict[str, float]


@dataclass(kw_only=True)
class DataEngine:
    """Stages 1 and 2 of the paper's data engine over pools of images, in a run directory; it resumes after a kill.

    initial:      the first model
    first_round:  the number of the first round; above 1 if the ledger begins with an earlier run's lines (`take_over`)
    size_limits:  areas in pixels that separate small, medium and large objects in the ledger's coverage
    detector_train_on: "assisted": the detector learns the boxes of the first stage's masks, as the paper's did; "all": also
                  those of the semi-automatic rounds, which the models themselves have prefilled in part
    on_error:     "raise", or "skip" to leave out damaged tars and images and use all others
    on_line:      called with each ledger line once it is written
    """

    run_dir: Path
    stages: list[Stage]
    tools: ModelTools
    initial: Path
    first_round: int = 1
    seed: int = 0
    promote_metric: str = "val/miou_1"
    size_limits: tuple[float, float] = (32**2, 96**2)  # COCO's
    detector_train_on: str = "assisted"
    on_error: str = "raise"
    on_line: Callable[[LedgerLine], None] | None = None
    files: EngineFiles = field(init=False)

    def __post_init__(self) -> None:
        if not self.stages or not all(stage.rounds for stage in self.stages):
            raise ValueError("rounds is empty: name at least one round with its model, images and steps")
        if not 0 < self.size_limits[0] < self.size_limits[1]:
            raise ValueError(f"size_limits is {list(self.size_limits)}: give two ascending areas, such as [1024, 9216]")
        self.files = EngineFiles(self.run_dir)
        common: dict[str, Any] = {"files": self.files, "tools": self.tools, "seed": self.seed, "on_error": self.on_error}
        self._images = [StageImages(stage=stage, **common) for stage in self.stages]
        places = [(images, index) for images in self._images for index in range(len(images.stage.rounds))]
        self._places = dict(enumerate(places, start=self.first_round))

    def run(self) -> Path:
        """Runs all rounds that are not in the ledger yet; returns the checkpoint of the promoted model."""
        ledger = read_ledger(self.run_dir)
        if not ledger:
            ledger.append(self._first_model())
        for number in range(len(ledger), max(self._places) + 1):
            ledger.append(self._round(number, ledger))
        self._publish(promoted(ledger))  # restores a copy that was lost
        return self.files.best

    def _first_model(self) -> LedgerLine:
        """Measures the model that helps to annotate in round 1; returns its line, that of round 0."""
        sha256, size = identify(self.initial)
        model, images = Weights(self.files.name(self.initial), sha256), self._images[0]
        measured = self._validate(0, self.initial)
        probed = images.probe(0, "probe", [], model)
        line = LedgerLine(
            round=0,
            stage=images.stage.name,
            model=RoundModel(name=size, checkpoint=model.name, digest=model.digest, parent=None),
            annotated=summarise_round([], self.size_limits),
            totals=Totals(masks=0, images=0, images_seen=0),
            probe=summarise_probe(probed.result, self.size_limits),
            promotion=Promotion(metric=self.promote_metric, before={}, after=measured.result, promoted=True, encoder=size),
            wall={"measure": measured.wall, "probe": probed.wall},
        )
        return self._write(line)

    def _round(self, number: int, ledger: list[LedgerLine]) -> LedgerLine:
        """Runs one round and returns its line."""
        images, index = self._places[number]
        current = _Round(number, index, images, ledger)
        log.info("round %d of %d: annotating with %s", number, max(self._places), current.helper.name)
        detector = self._prefill(current)
        annotation = self._annotate(current, detector)
        training = self._train(current, annotation)
        measurement = self._measure(current, training, detector)
        return self._record(current, detector, annotation, training, measurement)

    # ---- the five steps of a round

    def _prefill(self, current: _Round) -> Done:
        """Trains the detector on earlier rounds' masks; returns its weights, or None in a stage without prefilling.

        Its boxes prompt the model on each image before the annotator sees it. Training starts from the detector of the
        round before.
        """
        if current.stage.prefill is None:
            return Done(None, 0.0)
        steps, last = current.config.detector_steps, current.ledger[-1].detector
        assert steps is not None, "RoundConfig checks this for semi-automatic rounds"
        request = DetectorRequest(
            directory=self.files.folder(current.number) / "detector",
            init=self.files.path(last.checkpoint) if last else None,
            shards=self._detector_shards(current.ledger),
            steps=steps,
        )

        def train() -> list[str]:
            log.info("round %d: training the detector for %d steps", current.number, steps)
            path = self.tools.fit_detector(request)
            return [self.files.name(path), digest(path)]

        done = do_once(self.files.folder(current.number) / "detector.json", train)
        return replace(done, result=Weights(*done.result))

    def _annotate(self, current: _Round, detector: Done) -> _Annotation:
        """Annotates the round's images with the promoted model's help and writes their masks as shards."""
        number, index, ledger = current.number, current.index, current.ledger
        drawn = current.images.annotate(number, index, ledger, current.helper, detector.result)
        path = self.files.folder(number) / "shards.json"
        shards = do_once(path, lambda: current.images.write_shards(number, index, ledger, drawn.result))
        return _Annotation(drawn.result, shards.result, {"annotate": drawn.wall, "shards": shards.wall})

    def _train(self, current: _Round, annotation: _Annotation) -> _Training:
        """Trains from the promoted model on the masks of all rounds so far, and on nothing else."""
        fitted = do_once(self.files.folder(current.number) / "fit.json", lambda: self._fit(current, annotation)).result
        sha256, _ = identify(self.files.path(fitted["checkpoint"]))
        return _Training(Weights(fitted["checkpoint"], sha256), fitted["images_seen"], fitted["seconds"])

    def _measure(self, current: _Round, training: _Training, detector: Done) -> _Measurement:
        """Validates the trained model, compares it with the promoted one, and probes the better of the two."""
        number, images, ledger = current.number, current.images, current.ledger
        validated = self._validate(number, self.files.path(training.model.name))
        better = is_better(validated.result, current.parent.promotion.after, self.promote_metric)

        # the probe of the model in use: the last line holds it, unless a stage begins, which has other images
        probe, probe_before, wall = ledger[-1].probe, None, 0.0
        if current.opens_stage:
            done = images.probe(number, "probe_before", ledger, current.helper)
            probe = probe_before = summarise_probe(done.result, self.size_limits)
            wall += done.wall

        # the probe of the trained model, only if it is promoted
        if better:
            done = images.probe(number, "probe", ledger, training.model)
            probe = summarise_probe(done.result, self.size_limits)
            wall += done.wall

        # the detector is new in each round, so its coverage is measured again even if the model stayed
        prefilled = images.probe_prefilled(number, ledger, training.model if better else current.helper, detector.result)
        if prefilled is not None:
            probe = replace(probe, coverage=summarise_coverage(prefilled.result, self.size_limits))
            wall += prefilled.wall
        return _Measurement(validated.result, better, probe, probe_before, {"measure": validated.wall, "probe": wall})

    def _record(
        self, current: _Round, detector: Done, annotation: _Annotation, training: _Training, measurement: _Measurement
    ) -> LedgerLine:
        """Writes the line of the round and publishes the trained model if it is promoted."""
        config, last, parent, model = current.config, current.ledger[-1], current.parent, training.model
        annotated, weights = summarise_round(annotation.drawings, self.size_limits), detector.result
        new_images = current.images.count_new(annotation.drawings, current.ledger)
        line = LedgerLine(
            round=current.number,
            stage=current.stage.name,
            model=RoundModel(name=config.model, checkpoint=model.name, digest=model.digest, parent=parent.model.digest),
            annotated=annotated,
            totals=Totals(
                masks=last.totals.masks + annotated.masks - (annotated.people.removed if annotated.people else 0),
                images=last.totals.images + new_images,
                images_seen=training.images_seen,
            ),
            probe=measurement.probe,
            promotion=self._promotion(current, measurement),
            detector=RoundDetector(checkpoint=weights.name, digest=weights.digest) if weights else None,
            probe_before=measurement.probe_before,
            shards=tuple(Shard(**shard) for shard in annotation.shards),
            wall={"detector": detector.wall, **annotation.wall, "fit": training.wall, **measurement.wall},
        )
        return self._write(line)

    # ---- parts of the steps

    def _detector_shards(self, ledger: Sequence[LedgerLine]) -> list[str]:
        """Returns the shards that the detector learns from: the first stage's, or those of all rounds before."""
        lines = [line for line in ledger if self.detector_train_on == "all" or line.stage == ASSISTED_MANUAL]
        return [str(shard) for shard in self.files.shards(lines)]

    def _fit(self, current: _Round, annotation: _Annotation) -> dict[str, Any]:
        """Returns the result of the training as plain JSON."""
        config, number = current.config, current.number
        own = [self.files.path(shard["path"]) for shard in annotation.shards]
        shards = [str(path) for path in [*self.files.shards(current.ledger), *own]]
        request = FitRequest(
            directory=self.files.folder(number) / "fit",
            model=config.model,
            init=self.files.path(current.helper.name),
            train=[Source(shards, last_counts=True)],  # several shards may hold an image, with more masks each time
            steps=config.steps,
            learning_rate_factor=config.learning_rate_factor,
            images_seen=current.ledger[-1].totals.images_seen,
            model_key=f"rounds.{config.number}.model",
        )
        log.info("round %d: training %s for %d steps; number of shards: %d", number, config.model, config.steps, len(shards))
        result = self.tools.fit(request)
        return {
            "checkpoint": self.files.name(result.checkpoint),
            "last": self.files.name(result.last),
            "metrics": finite(result.metrics),
            "images_seen": int(result.images_seen),
            "seconds": float(result.seconds),
        }

    def _validate(self, number: int, checkpoint: Path) -> Done:
        """Returns the validation metrics of a checkpoint; none if there are no validation images."""
        done = do_once(self.files.folder(number) / "measure.json", lambda: finite(self.tools.measure(checkpoint)))
        if done.result and self.promote_metric not in done.result:
            raise ValueError(
                f"engine.promote_metric is {self.promote_metric!r}, but validation measures {', '.join(done.result)}: "
                "choose one of these"
            )
        return done

    def _promotion(self, current: _Round, measurement: _Measurement) -> Promotion:
        parent, better = current.parent.promotion, measurement.better
        return Promotion(
            metric=self.promote_metric,
            before=parent.after,
            after=measurement.metrics,
            promoted=better,
            encoder=current.config.model if better else parent.encoder,
        )

    def _write(self, line: LedgerLine) -> LedgerLine:
        """Publishes a promoted model, then writes the line, so that the ledger never names a model that is not in place."""
        if line.promoted:
            self._publish(line)
        append_line(self.run_dir, line)
        log.info("%s", line.describe())
        if self.on_line is not None:
            self.on_line(line)
        return line

    def _publish(self, line: LedgerLine) -> None:
        """Copies a line's checkpoint to `files.best`, unless that holds the same weights."""
        best = self.files.best
        if best.is_file() and identify(best)[0] == line.model.digest:
            return
        with atomic_path(best) as temporary:
            shutil.copyfile(self.files.path(line.model.checkpoint), temporary)


def is_better(after: dict[str, float | None], before: dict[str, float | None], metric: str) -> bool:
    """Returns whether a metric has grown; an equal model is not worth a new version, and None is worse than any number.

    If nothing was measured, the newer model is taken for better: it has seen more masks.
    """
    if not after:
        return True
    new, old = after[metric], before.get(metric)
    return new is not None and (old is None or new > old)
