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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from samtrain.data_engine.annotation import Annotating, write_shards
from samtrain.data_engine.annotators import Annotator
from samtrain.data_engine.ledger import LedgerLine, append_line, finite, read_ledger
from samtrain.data_engine.pieces import Done, do_once
from samtrain.data_engine.pool import Pool, PoolItem, Selection
from samtrain.data_engine.records import summarise, summarise_probe
from samtrain.modeling.checkpoints import read_weights, replaced_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """One round: the model that it trains, pictures to annotate, steps to train, the rate (None: the recipe's)."""

    model: str
    images: int
    steps: int
    learning_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """Train `model` from `init` on `shards` (all masks so far) in `directory`; what lies there is gone on with."""

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
    """The best checkpoint and the last, the numbers of the best, pictures seen since the run began, seconds it took."""

    checkpoint: Path
    last: Path
    metrics: dict[str, float]
    images_seen: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Pictures that are annotated again with each promoted model, never trained on; its annotator finishes them."""

    annotator: Annotator
    images: int


class DataEngine:
    """Stage 1 of the paper's data engine over a pool of pictures, in a run directory; it can be killed at any time."""

    def __init__(
        self,
        *,
        run_dir: Path,
        rounds: list[RoundConfig],
        pool: list[str],
        annotator: Annotator,
        load_predictor: Callable[[Path], Any],
        fit: Callable[[FitRequest], FitResult],
        measure: Callable[[Path], dict[str, float]],
        initial: Path,
        probe: Probe | None = None,
        seed: int = 0,
        stage: str = "assisted_manual",
        promote_metric: str = "val/miou_1",
        on_line: Callable[[LedgerLine], None] | None = None,
    ) -> None:
        """`pool` are local tars, `initial` the first model; `on_line` hears of each ledger line once it is written."""
        if not rounds:
            raise ValueError("rounds is empty: name at least one round with its model, images and steps")
        self.run_dir, self.rounds, self.pool = Path(run_dir), rounds, Pool(pool)
        self.annotator, self.probe, self.seed, self.stage = annotator, probe, seed, stage
        self.load_predictor, self.fit, self.measure = load_predictor, fit, measure
        self.initial, self.promote_metric, self.on_line = Path(initial), promote_metric, on_line

    @property
    def best(self) -> Path:
        """Where the promoted model lies."""
        return self.run_dir / "checkpoints" / "best.ckpt"

    def run(self) -> Path:
        """All rounds that are not in the ledger yet; returns `best`."""
        ledger = read_ledger(self.run_dir)
        if not ledger:
            ledger.append(self._first_model())
        for number in range(len(ledger), len(self.rounds) + 1):
            ledger.append(self._round(number, ledger))
        self._publish(promoted(ledger))
        return self.best

    def _first_model(self) -> LedgerLine:
        """Round 0: the model that helps to annotate in round 1."""
        digest, model = identify(self.initial)
        measured = self._measure(0, self.initial)
        probed = self._probe(0, self.initial, digest)
        line = LedgerLine(
            round=0,
            stage=self.stage,
            model=model,
            encoder=model,
            parent=None,
            checkpoint=self._name(self.initial),
            digest=digest,
            **summarise([]),
            **summarise_probe(probed.result),
            masks_total=0,
            images_seen=0,
            promote_metric=self.promote_metric,
            metrics_before={},
            metrics_after=measured.result,
            promoted=True,
            wall={"measure": measured.wall, "probe": probed.wall},
        )
        return self._write(line)

    def _round(self, number: int, ledger: list[LedgerLine]) -> LedgerLine:
        """One round, from the pictures to its line."""
        parent, folder = promoted(ledger), self._folder(number)
        log.info("round %d of %d: annotating with %s", number, len(self.rounds), parent.checkpoint)
        drawn = self._annotate(number, self._path(parent.checkpoint), parent.digest)
        shards = do_once(folder / "shards.json", lambda: self._write_shards(number, drawn))
        fitted = do_once(folder / "fit.json", lambda: self._fit(number, ledger, shards.result))
        checkpoint = self._path(fitted.result["checkpoint"])
        measured = self._measure(number, checkpoint)

        # promote if better; what the old model does with the probe is known
        better = is_better(measured.result, parent.metrics_after, self.promote_metric)
        digest, _ = identify(checkpoint)
        probed = self._probe(number, checkpoint, digest) if better else None
        numbers = summarise(drawn.result) | (summarise_probe(probed.result) if probed else parent.probe())
        wall = {"annotate": drawn.wall, "shards": shards.wall, "fit": fitted.result["seconds"]}
        wall |= {"measure": measured.wall, "probe": probed.wall if probed else 0.0}
        line = LedgerLine(
            round=number,
            stage=self.stage,
            model=self.rounds[number - 1].model,
            encoder=self.rounds[number - 1].model if better else parent.encoder,
            parent=parent.digest,
            checkpoint=fitted.result["checkpoint"],
            digest=digest,
            **numbers,
            masks_total=ledger[-1].masks_total + numbers["masks"],
            images_seen=fitted.result["images_seen"],
            promote_metric=self.promote_metric,
            metrics_before=parent.metrics_after,
            metrics_after=measured.result,
            promoted=better,
            shards=shards.result,
            wall=wall,
        )
        return self._write(line)

    def _annotate(self, number: int, checkpoint: Path, digest: str) -> Done:
        """The drawings of a round's pictures."""
        items = self._selection.rounds[number - 1]
        return self._draw(number, "annotations", items, self.annotator, checkpoint, digest)

    def _probe(self, number: int, checkpoint: Path, digest: str) -> Done:
        """The drawings of the probe's pictures; none without a probe."""
        if self.probe is None:
            return Done([], 0.0)
        return self._draw(number, "probe", self._selection.probe, self.probe.annotator, checkpoint, digest)

    def _draw(
        self, number: int, kind: str, items: list[PoolItem], annotator: Annotator, checkpoint: Path, digest: str
    ) -> Done:
        return Annotating(
            folder=self._folder(number) / kind,
            pool=self.pool,
            items=items,
            annotator=annotator,
            load=lambda: self.load_predictor(checkpoint),
            model_digest=digest,
            number=number,
        ).drawings()

    def _write_shards(self, number: int, drawn: Done) -> list[dict[str, Any]]:
        folder, prefix = self._folder(number) / "shards", f"{self.stage}_round{number:02d}"
        shards = write_shards(folder, prefix, self.pool, self._selection.rounds[number - 1], drawn.result)
        return [shard | {"path": self._name(Path(shard["path"]))} for shard in shards]

    def _fit(self, number: int, ledger: list[LedgerLine], shards: list[dict[str, Any]]) -> dict[str, Any]:
        """Retrain from the promoted model on the masks of all rounds so far, and only those."""
        config = self.rounds[number - 1]
        collected = [shard for line in ledger for shard in line.shards] + shards
        request = FitRequest(
            directory=self._folder(number) / "fit",
            round=number,
            model=config.model,
            init=self._path(promoted(ledger).checkpoint),
            shards=[str(self._path(shard["path"])) for shard in collected],
            steps=config.steps,
            images_seen=ledger[-1].images_seen,
            learning_rate=config.learning_rate,
        )
        log.info("round %d: training %s on %d shards for %d steps", number, config.model, len(collected), config.steps)
        result = self.fit(request)
        return {
            "checkpoint": self._name(result.checkpoint),
            "last": self._name(result.last),
            "metrics": finite(result.metrics),
            "images_seen": int(result.images_seen),
            "seconds": float(result.seconds),
        }

    def _measure(self, number: int, checkpoint: Path) -> Done:
        done = do_once(self._folder(number) / "measure.json", lambda: finite(self.measure(checkpoint)))
        if self.promote_metric not in done.result:
            raise ValueError(
                f"promote_metric is {self.promote_metric!r}, measured were {', '.join(done.result)}: take one of these"
            )
        return done

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
        with replaced_whole(self.best) as temporary:
            shutil.copyfile(self._path(line.checkpoint), temporary)

    @cached_property
    def _selection(self) -> Selection:
        probe_images = self.probe.images if self.probe is not None else 0
        return self.pool.select([config.images for config in self.rounds], probe_images, self.seed)

    def _folder(self, number: int) -> Path:
        return self.run_dir / "rounds" / str(number)

    def _name(self, path: Path) -> str:
        """Relative to the run's directory where it lies there, so that a run can be moved."""
        whole, root = Path(os.path.abspath(path)), os.path.abspath(self.run_dir)
        return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)

    def _path(self, name: str) -> Path:
        return self.run_dir / name  # an absolute name stays what it is


def promoted(ledger: list[LedgerLine]) -> LedgerLine:
    """The line of the model that is in use."""
    return next(line for line in reversed(ledger) if line.promoted)


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
