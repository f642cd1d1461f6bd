"""The rounds: annotate with the current model, write shards, retrain, measure, promote or keep, write the ledger line.

Where a run stands is read off its files (`pieces.py`); one that was killed does again only the piece it was in.
Nothing here knows Hydra or Lightning: training, measuring and loading are functions that the caller brings.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from samtrain.data.datasets import Source
from samtrain.data_engine.annotation import Annotating, Helpers, write_shards
from samtrain.data_engine.annotators import Annotator
from samtrain.data_engine.collected import collected_keys, collected_masks
from samtrain.data_engine.ledger import LedgerLine, append_line, finite, promoted, read_ledger
from samtrain.data_engine.pool import Pool, PoolItem, Selection
from samtrain.data_engine.prefill import Prefiller
from samtrain.data_engine.records import Origin, summarise, summarise_filled_probe, summarise_probe
from samtrain.data_engine.stages import DetectorRequest, FitRequest, RoundConfig, Stage, Tools
from samtrain.files import Done, atomic_path, digest, do_once
from samtrain.modeling.checkpoints import read_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """Where a round stands: its stage, its settings, its number in the stage from 0."""

    stage: Stage
    config: RoundConfig
    number: int


@dataclass(frozen=True)
class _Known:
    """A model or a detector: its file, as the ledger names it, and its digest."""

    name: str
    digest: str


@dataclass(kw_only=True)
class DataEngine:
    """Stages 1 and 2 of the paper's data engine over pools of images, in a run directory; it can be killed at any time.

    initial:      the first model
    first_round:  the number of the first round; above 1 where the ledger was begun with an earlier run's (`take_over`)
    size_limits:  areas in pixels that part small, medium and large objects in what the ledger says of coverage
    on_error:     "raise", or "skip" for tars that are cut and images that cannot be read: the whole rest is used
    on_line:      hears of each ledger line once it is written
    """

    run_dir: Path
    stages: list[Stage]
    tools: Tools
    initial: Path
    first_round: int = 1
    seed: int = 0
    promote_metric: str = "val/miou_1"
    size_limits: tuple[float, float] = (32**2, 96**2)  # COCO's
    on_error: str = "raise"
    on_line: Callable[[LedgerLine], None] | None = None

    def __post_init__(self) -> None:
        if not self.stages or not all(stage.rounds for stage in self.stages):
            raise ValueError("rounds is empty: name at least one round with its model, images and steps")
        if not 0 < self.size_limits[0] < self.size_limits[1]:
            raise ValueError(f"size_limits are {list(self.size_limits)}: take two ascending areas in pixels, as [1024, 9216]")
        self._pools = {stage.name: Pool(stage.pool, self.on_error) for stage in self.stages}
        self._selections: dict[str, Selection] = {}
        places = [_Place(stage, config, n) for stage in self.stages for n, config in enumerate(stage.rounds)]
        self._places = dict(enumerate(places, start=self.first_round))

    @property
    def best(self) -> Path:
        """Where the promoted model lies."""
        return self.run_dir / "checkpoints" / "best.ckpt"

    def run(self) -> Path:
        """All rounds that are not in the ledger yet; returns `best`."""
        ledger = read_ledger(self.run_dir)
        if not ledger:
            ledger.append(self._first_model())
        for number in range(len(ledger), max(self._places) + 1):
            ledger.append(self._round(number, ledger))
        self._publish(promoted(ledger))
        return self.best

    def _first_model(self) -> LedgerLine:
        """Round 0: the model that helps to annotate in round 1."""
        digest, name = identify(self.initial)
        model, stage = _Known(self._name(self.initial), digest), self.stages[0]
        measured = self._measure(0, self.initial)
        probe, wall = self._probe_alone(0, "probe", stage, model, [])
        line = LedgerLine(
            round=0,
            stage=stage.name,
            model=name,
            encoder=name,
            parent=None,
            checkpoint=model.name,
            digest=digest,
            **summarise([], self.size_limits),
            **probe,
            masks_total=0,
            images_total=0,
            images_seen=0,
            promote_metric=self.promote_metric,
            metrics_before={},
            metrics_after=measured.result,
            promoted=True,
            wall={"measure": measured.wall, "probe": wall},
        )
        return self._write(line)

    def _round(self, number: int, ledger: list[LedgerLine]) -> LedgerLine:
        """One round, from the images to its line."""
        place, parent, folder = self._places[number], promoted(ledger), self._folder(number)
        log.info("round %d of %d: annotating with %s", number, max(self._places), parent.checkpoint)
        helper = _Known(parent.checkpoint, parent.digest)
        detected = self._detect(number, ledger) if place.stage.prefill else None
        detector = _Known(*detected.result) if detected else None
        before, opening, opening_wall = self._probe_before(number, ledger, helper)
        drawn = self._annotate(number, ledger, helper, detector)
        shards = do_once(folder / "shards.json", lambda: self._write_shards(number, ledger, drawn))
        fitted = do_once(folder / "fit.json", lambda: self._fit(number, ledger, shards.result))
        trained = _Known(fitted.result["checkpoint"], identify(self._path(fitted.result["checkpoint"]))[0])
        measured = self._measure(number, self._path(trained.name))

        # promote if better; what the old model does alone with the probe is known
        better = is_better(measured.result, parent.metrics_after, self.promote_metric)
        alone = self._probe_alone(number, "probe", place.stage, trained, ledger) if better else (before, 0.0)
        filled = self._probe_filled(number, trained if better else helper, detector, ledger)
        numbers = summarise(drawn.result, self.size_limits)
        wall = {"detector": detected.wall if detected else 0.0, "annotate": drawn.wall, "shards": shards.wall}
        wall |= {"fit": fitted.result["seconds"], "measure": measured.wall, "probe": opening_wall + alone[1] + filled[1]}
        line = LedgerLine(
            round=number,
            stage=place.stage.name,
            model=place.config.model,
            encoder=place.config.model if better else parent.encoder,
            parent=parent.digest,
            checkpoint=trained.name,
            digest=trained.digest,
            detector=detector.name if detector else None,
            detector_digest=detector.digest if detector else None,
            **numbers,
            **(alone[0] | filled[0]),
            probe_before=opening,
            masks_total=ledger[-1].masks_total + numbers["masks"],
            images_total=ledger[-1].images_total + sum(not (each["earlier"] or each["skipped"]) for each in drawn.result),
            images_seen=fitted.result["images_seen"],
            promote_metric=self.promote_metric,
            metrics_before=parent.metrics_after,
            metrics_after=measured.result,
            promoted=better,
            shards=shards.result,
            wall=wall,
        )
        return self._write(line)

    # ---- annotating

    def _annotate(self, number: int, ledger: list[LedgerLine], model: _Known, detector: _Known | None) -> Done:
        """The drawings of a round's images."""
        place = self._places[number]
        items = self._selection(place.stage, ledger).rounds[place.number]
        helpers = self._helpers(place.stage, place.stage.annotator, model, detector)
        keys = {self._pools[place.stage.name].key(item) for item in items}
        earlier = collected_masks(self._shards(ledger), keys)
        return self._drawings(number, "annotations", items, helpers, earlier)

    def _probe_before(
        self, number: int, ledger: list[LedgerLine], model: _Known
    ) -> tuple[dict[str, Any], dict[str, Any], float]:
        """What the model in use does with the probe: as the last line says, or, where a stage opens, found out now; then the
        same again, and the seconds that it took.
        """
        stage = self._places[number].stage
        if ledger[-1].stage == stage.name:
            return ledger[-1].probe(), {}, 0.0
        probe, wall = self._probe_alone(number, "probe_before", stage, model, ledger)
        return probe, probe, wall

    def _probe_alone(
        self, number: int, kind: str, stage: Stage, model: _Known, ledger: list[LedgerLine]
    ) -> tuple[dict[str, Any], float]:
        """`probe_*` of a model with nothing filled in, and seconds."""
        done = Done([], 0.0)
        if stage.probe is not None:
            helpers = self._helpers(stage, stage.probe.annotator, model, None)
            done = self._drawings(number, kind, self._selection(stage, ledger).probe, helpers)
        return summarise_probe(done.result, self.size_limits), done.wall

    def _probe_filled(
        self, number: int, model: _Known, detector: _Known | None, ledger: list[LedgerLine]
    ) -> tuple[dict[str, Any], float]:
        """What of `probe_*` is another in a stage that fills in, and seconds."""
        stage = self._places[number].stage
        if stage.probe is None or detector is None:
            return {}, 0.0
        helpers = self._helpers(stage, stage.annotator, model, detector)
        done = self._drawings(number, "probe_filled", self._selection(stage, ledger).probe, helpers)
        return summarise_filled_probe(done.result, self.size_limits), done.wall

    def _helpers(self, stage: Stage, annotator: Annotator, model: _Known, detector: _Known | None) -> Helpers:
        helpers = Helpers(
            annotator=annotator,
            origin=Origin(model.digest),
            load_predictor=lambda: self.tools.load_predictor(self._path(model.name)),
        )
        if detector is None:
            return helpers
        assert stage.prefill is not None, "only stages that fill in have a detector"
        path, config = self._path(detector.name), stage.prefill
        return replace(
            helpers,
            origin=Origin(model.digest, detector.digest),
            load_prefiller=lambda: Prefiller(self.tools.load_detector(path), config),
        )

    def _drawings(
        self,
        number: int,
        kind: str,
        items: list[PoolItem],
        helpers: Helpers,
        earlier: dict[str, list[dict[str, Any]]] | None = None,
    ) -> Done:
        stage = self._places.get(number, self._places[self.first_round]).stage
        return Annotating(
            folder=self._folder(number) / kind,
            pool=self._pools[stage.name],
            items=items,
            helpers=helpers,
            number=number,
            earlier=earlier or {},
            on_error=self.on_error,
        ).drawings()

    def _selection(self, stage: Stage, ledger: list[LedgerLine]) -> Selection:
        """The stage's images; those that earlier stages have annotated come last."""
        if stage.name not in self._selections:
            before = self._shards([line for line in ledger if line.stage != stage.name])
            self._selections[stage.name] = self._pools[stage.name].select(
                [config.images for config in stage.rounds],
                stage.probe.images if stage.probe else 0,
                self.seed,
                collected_keys(before),
            )
        return self._selections[stage.name]

    def _write_shards(self, number: int, ledger: list[LedgerLine], drawn: Done) -> list[dict[str, Any]]:
        place = self._places[number]
        folder, prefix = self._folder(number) / "shards", f"{place.stage.name}_round{number:02d}"
        items = self._selection(place.stage, ledger).rounds[place.number]
        shards = write_shards(folder, prefix, self._pools[place.stage.name], items, drawn.result)
        return [shard | {"path": self._name(Path(shard["path"]))} for shard in shards]

    # ---- training and measuring

    def _detect(self, number: int, ledger: list[LedgerLine]) -> Done:
        """The detector of a round, trained on the masks of all rounds before, from the detector before: [file, sha256]."""
        config, last = self._places[number].config, ledger[-1].detector
        request = DetectorRequest(
            directory=self._folder(number) / "detector",
            init=self._path(last) if last else None,
            shards=[str(shard) for shard in self._shards(ledger)],
            steps=config.detector_steps,
        )

        def train() -> list[str]:
            log.info("round %d: training the detector for %d steps", number, config.detector_steps)
            path = self.tools.fit_detector(request)
            return [self._name(path), digest(path)]

        return do_once(self._folder(number) / "detector.json", train)

    def _fit(self, number: int, ledger: list[LedgerLine], shards: list[dict[str, Any]]) -> dict[str, Any]:
        """Retrain from the promoted model on the masks of all rounds so far, and only those."""
        config = self._places[number].config
        paths = [str(path) for path in [*self._shards(ledger), *(self._path(shard["path"]) for shard in shards)]]
        request = FitRequest(
            directory=self._folder(number) / "fit",
            model=config.model,
            init=self._path(promoted(ledger).checkpoint),
            train=[Source(paths, last_counts=True)],  # an image may be in several shards, with more masks each time
            steps=config.steps,
            learning_rate=config.learning_rate,
            images_seen=ledger[-1].images_seen,
            model_key=config.model_key,
        )
        count = len(paths)
        log.info("round %d: training %s on %d shards for %d steps", number, config.model, count, config.steps)
        result = self.tools.fit(request)
        return {
            "checkpoint": self._name(result.checkpoint),
            "last": self._name(result.last),
            "metrics": finite(result.metrics),
            "images_seen": int(result.images_seen),
            "seconds": float(result.seconds),
        }

    def _measure(self, number: int, checkpoint: Path) -> Done:
        done = do_once(self._folder(number) / "measure.json", lambda: finite(self.tools.measure(checkpoint)))
        if self.promote_metric not in done.result:
            raise ValueError(
                f"promote_metric is {self.promote_metric!r}, measured were {', '.join(done.result)}: take one of these"
            )
        return done

    # ---- files

    def _write(self, line: LedgerLine) -> LedgerLine:
        """The promoted model to its place first, then the line: what the ledger says is so."""
        if line.promoted:
            self._publish(line)
        append_line(self.run_dir, line)
        log.info("%s", line.in_words())
        if self.on_line is not None:
            self.on_line(line)
        return line

    def _publish(self, line: LedgerLine) -> None:
        """Copy a line's checkpoint to `best`, unless it lies there."""
        if self.best.is_file() and identify(self.best)[0] == line.digest:
            return
        with atomic_path(self.best) as temporary:
            shutil.copyfile(self._path(line.checkpoint), temporary)

    def _shards(self, ledger: list[LedgerLine]) -> list[Path]:
        return [self._path(shard["path"]) for line in ledger for shard in line.shards]

    def _folder(self, number: int) -> Path:
        return self.run_dir / "rounds" / str(number)

    def _name(self, path: Path) -> str:
        """Relative to the run's directory where it lies there, so that a run can be moved."""
        whole, root = Path(os.path.abspath(path)), os.path.abspath(self.run_dir)
        return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)

    def _path(self, name: str) -> Path:
        return self.run_dir / name  # an absolute name stays what it is


def is_better(after: dict[str, float | None], before: dict[str, float | None], metric: str) -> bool:
    """Strictly: a model that is no better is not worth a new version. What is no number is worse than any number."""
    new, old = after[metric], before[metric]
    return new is not None and (old is None or new > old)


def identify(checkpoint: Path) -> tuple[str, str]:
    """sha256 of the weights (not of the file: that holds paths and clocks too), and the name of the model's size."""
    weights = read_weights(checkpoint)
    state = hashlib.sha256()
    for key, tensor in sorted(weights.state_dict.items()):
        state.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest(), weights.config.model if weights.config else "unknown"
