"""The images of one stage: which of them each round annotates, which are the probe, and how they are annotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samtrain.data_engine.annotation import Annotating, Helpers, write_shards
from samtrain.data_engine.collected import annotated_keys, collected_keys, collected_masks, untouched_keys
from samtrain.data_engine.engine_files import EngineFiles, Weights
from samtrain.data_engine.interface import Annotator, RoundAnnotator, of_rounds
from samtrain.data_engine.ledger_line import LedgerLine
from samtrain.data_engine.pool import Pool, PoolItem, Selection
from samtrain.data_engine.prefill import Prefiller
from samtrain.data_engine.records import Drawing, Origin
from samtrain.data_engine.stages import ModelTools, Stage
from samtrain.files import Done


@dataclass(kw_only=True)
class StageImages:
    """Annotates the images of a stage: those of its rounds and those of its probe.

    Every method takes the ledger of the rounds before, because images that earlier stages have annotated come last.
    """

    stage: Stage
    files: EngineFiles
    tools: ModelTools
    seed: int
    on_error: str
    pool: Pool = field(init=False)
    _selection: Selection | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.pool = Pool(self.stage.pool, self.on_error)

    def annotate(self, number: int, index: int, ledger: Sequence[LedgerLine], model: Weights, detector: Weights | None) -> Done:
        """Returns the drawings of round `number` of the run, which is round `index` of the stage, counted from 0."""
        items = self._items(number, index, ledger)
        helpers = self._helpers(self.stage.annotator, model, detector)
        earlier = collected_masks(self.files.shards(ledger), {self.pool.key(item) for item in items})
        return self._draw(number, "annotations", items, helpers, earlier)

    def write_shards(
        self, number: int, index: int, ledger: Sequence[LedgerLine], drawings: Sequence[Drawing]
    ) -> list[dict[str, Any]]:
        """Writes the masks of a round as tars in the form of SA-1B; returns [{path, sha256, images, masks}]."""
        folder, prefix = self.files.folder(number) / "shards", f"{self.stage.name}_round{number:02d}"
        shards = write_shards(folder, prefix, self.pool, self._items(number, index, ledger), drawings)
        return [shard | {"path": self.files.name(Path(shard["path"]))} for shard in shards]

    def count_new(self, drawings: Sequence[Drawing], ledger: Sequence[LedgerLine]) -> int:
        """Returns how many of a round's images were annotated for the first time; earlier stages may have found no mask."""
        new = [each["key"] for each in drawings if not (each["earlier"] or each["skipped"] or each.get("untouched"))]
        before = [line for line in ledger if line.stage != self.stage.name]
        return len(set(new) - annotated_keys(self.files.shards(before))) if before else len(new)

    def probe(self, number: int, kind: str, ledger: Sequence[LedgerLine], model: Weights) -> Done:
        """Returns the drawings of the probe without prefilling; none if the stage has no probe.

        `kind` names the folder of the drawings.
        """
        if self.stage.probe is None:
            return Done([], 0.0)
        helpers = self._helpers(self.stage.probe.annotator, model, None)
        return self._draw(number, kind, self._select(ledger).probe, helpers)

    def probe_prefilled(
        self, number: int, ledger: Sequence[LedgerLine], model: Weights, detector: Weights | None
    ) -> Done | None:
        """Returns the drawings of the probe by the stage's own annotator after prefilling; None if nothing is prefilled."""
        if self.stage.probe is None or detector is None:
            return None
        helpers = self._helpers(self.stage.annotator, model, detector)
        return self._draw(number, "probe_filled", self._select(ledger).probe, helpers)

    def _items(self, number: int, index: int, ledger: Sequence[LedgerLine]) -> list[PoolItem]:
        """Returns the images of a round: first those that people left untouched in earlier rounds of the stage, then new ones.

        A simulation leaves none untouched.
        """
        rounds = self._select(ledger).rounds
        waiting = [item for round in rounds for item in round]
        for place, round in enumerate(rounds[:index]):
            untouched = untouched_keys(self.files.folder(number - index + place) / "annotations")
            shown, rest = waiting[: len(round)], waiting[len(round) :]
            waiting = [item for item in shown if self.pool.key(item) in untouched] + rest
        return waiting[: len(rounds[index])]

    def _select(self, ledger: Sequence[LedgerLine]) -> Selection:
        """Returns the stage's images; those that earlier stages have annotated come last."""
        if self._selection is None:
            before = self.files.shards([line for line in ledger if line.stage != self.stage.name])
            self._selection = self.pool.select(
                [config.images for config in self.stage.rounds],
                self.stage.probe.images if self.stage.probe else 0,
                self.seed,
                collected_keys(before),
            )
        return self._selection

    def _helpers(self, annotator: Annotator | RoundAnnotator, model: Weights, detector: Weights | None) -> Helpers:
        helpers = Helpers(
            annotator=of_rounds(annotator),
            origin=Origin(model.digest),
            checkpoint=self.files.path(model.name),
            load_predictor=lambda: self.tools.load_predictor(self.files.path(model.name)),
        )
        if detector is None:
            return helpers
        assert self.stage.prefill is not None, "only stages that prefill masks have a detector"
        path, config = self.files.path(detector.name), self.stage.prefill
        return replace(
            helpers,
            origin=Origin(model.digest, detector.digest),
            load_prefiller=lambda: Prefiller(self.tools.load_detector(path), config),
        )

    def _draw(
        self,
        number: int,
        kind: str,
        items: Sequence[PoolItem],
        helpers: Helpers,
        earlier: Mapping[str, list[dict[str, Any]]] | None = None,
    ) -> Done:
        return Annotating(
            folder=self.files.folder(number) / kind,
            pool=self.pool,
            items=items,
            helpers=helpers,
            number=number,
            stage=self.stage.name,
            earlier=earlier or {},
            on_error=self.on_error,
        ).drawings()
