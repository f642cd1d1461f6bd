"""The tools of the data engine, which knows neither Hydra nor Lightning: training, measuring and loading by the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pytorch_lightning.loggers import Logger

from samtrain.data.datasets import Source
from samtrain.data.image_set import ImageSet
from samtrain.data_engine.engine import DataEngine
from samtrain.data_engine.ledger import read_ledger
from samtrain.data_engine.ledger_line import LedgerLine
from samtrain.data_engine.stages import DetectorRequest, EngineConfig, FitRequest, FitResult, Stage
from samtrain.detector import Detector, load_detector, train_detector
from samtrain.files import do_once
from samtrain.inference.frames import make_predictor
from samtrain.modeling.build import load_sam
from samtrain.report import write_report
from samtrain.run.build import device_of, loggers_of, sam_config_of
from samtrain.run.image_sets import data_config, is_native, open_set
from samtrain.run.preflight import check_images
from samtrain.run.seen_images import check_splits
from samtrain.run.settings import Config, read
from samtrain.run.training import train, validate
from samtrain.run.worker import train_apart
from samtrain.tasks.detector import options_of, recipe_of
from samtrain.tasks.fit import fit_request
from samtrain.tasks.rounds.results import join_metrics
from samtrain.tasks.rounds.schedule import first_round
from samtrain.training.config import TrainerConfig
from samtrain.training.loggers import LedgerLogger, LoggerConfig, finish, make_loggers


class Page(Protocol):
    """What people look at while they annotate."""

    def show_training(self, number: int, message: str) -> None:
        """Says what the engine does in round `number` while it does not need people."""
        ...

    def show_model(self, checkpoint: Path, digest: str, name: str, metrics: Mapping[str, float | None]) -> None:
        """Lets this model help from now on."""
        ...


def show_model(page: Page, run_dir: Path, line: LedgerLine) -> None:
    """Lets the model of a ledger line help from now on."""
    name = f"{line.promotion.encoder}, round {line.round}" if line.round else f"{line.promotion.encoder}, the first model"
    page.show_model(run_dir / line.model.checkpoint, line.model.digest, name, line.promotion.after)


class EngineTools:
    """Trains, measures and loads models for the engine (`samtrain.data_engine.stages.ModelTools`).

    images_seen: images that the first model was trained on
    measured:    `val/*` of best checkpoints, where their own training has measured them
    apart:       trainings run on several devices, in processes of their own, which log for themselves
    shared:      loggers besides `metrics.csv` that all trainings share: one W&B run for all
    people:      who annotates, if these are people: they are told what the engine does and which model is promoted
    """

    def __init__(self, config: Config, run_dir: Path, images: ImageSet) -> None:
        self.config, self.run_dir, self.images = config, run_dir, images
        self.native = is_native(config["data"], images, sam_config_of(config))
        self.engine_config = read(EngineConfig, config, "engine")
        self.images_seen = 0
        self.measured: dict[Path, dict[str, float]] = {}
        self.apart = read(TrainerConfig, config, "trainer").num_devices > 1
        self.people: Page | None = None
        self.shared: list[Logger] = [] if self.apart else loggers_of(config, run_dir)[1:]

    @property
    def frame(self) -> str:
        """How images are shown to the models of the rounds: `SamConfig.frame`."""
        return "native" if self.native else "resize"

    def first_model(self) -> Path:
        """Returns `checkpoint`, or trains a model on the public data in `<run_dir>/pretrain`."""
        if self.config["checkpoint"] is not None:
            return Path(self.config["checkpoint"])
        config = {**self.config, "data": self._public_data()}
        public = open_set(config["data"], config["data_dir"])
        check_splits(self.config, self.images, public.train)
        request = fit_request(config, self.run_dir / "pretrain", public)

        def pretrain() -> dict[str, Any]:
            check_images(config, public, image_size=sam_config_of(config).image_size, native=request.native)
            result = self.train(request)
            return {"images_seen": result.images_seen, "metrics": result.metrics}

        done = do_once(request.directory / "fit.json", pretrain)
        self.images_seen = done.result["images_seen"]
        if config["data"] == self.config["data"]:  # validated on the same images as the rounds
            self.measured[request.best] = done.result["metrics"]
        return request.best

    def engine(self, initial: Path, stages: list[Stage]) -> DataEngine:
        """Returns the engine that runs the rounds of these stages, starting with the model `initial`."""
        return DataEngine(
            run_dir=self.run_dir,
            stages=stages,
            tools=self,
            initial=initial,
            first_round=first_round(self.config),
            seed=self.config["seed"],
            promote_metric=self.engine_config.promote_metric,
            size_limits=tuple(self.config["size_limits"]),
            detector_train_on=recipe_of(self.config).train_on,
            on_error=data_config(self.config["data"]).on_error,
            on_line=self._on_line,
        )

    # ---- what the engine asks for

    def load_predictor(self, checkpoint: Path) -> Any:
        """Returns the predictor of a checkpoint, on the device of the config."""
        return make_predictor(load_sam(checkpoint).to(device_of(self.config)), frame=self.frame)

    def fit(self, request: FitRequest) -> FitResult:
        """Trains the model of a round, validated on the images of the run."""
        jitter = self.engine_config.large_scale_jitter
        request = replace(
            request,
            val=self.images.val,
            native=self.native,
            large_scale_jitter=list(jitter) if jitter else None,
            images_seen=request.images_seen or self.images_seen,
        )
        self._tell("The model is being trained on all masks so far.")
        result = self.train(request)
        self.measured[result.checkpoint] = result.metrics
        return result

    def measure(self, checkpoint: Path) -> dict[str, float]:
        """Returns `val/*` of a checkpoint, as its training has measured it, or measured again after a kill in between."""
        if known := self.measured.get(checkpoint):
            return known
        if not self.images.val:
            return {}
        self._tell("The model is being measured.")
        return validate(self.config, checkpoint, self.images.val, native=self.native)

    def fit_detector(self, request: DetectorRequest) -> Path:
        """Trains a detector in this process, on one device, without validation: its last weights count."""
        self._tell("The detector is being trained, which finds the objects that the next round begins with.")
        return train_detector(
            [Source(request.shards, last_counts=True)],
            request.directory,
            recipe=replace(recipe_of(self.config), steps=request.steps, val_every_steps=None),
            seed=self.config["seed"],
            init=request.init,
            options=options_of(self.config),
        )

    def load_detector(self, path: Path) -> Detector:
        """Returns a detector on the device of the config."""
        return load_detector(path).to(device_of(self.config))

    # ---- training and logging

    def train(self, request: FitRequest) -> FitResult:
        """Trains in this process on one device, and in processes of their own on several."""
        if self.apart:
            return train_apart(self.run_dir, request, read(TrainerConfig, self.config, "trainer").launcher)
        csv = make_loggers(request.directory, LoggerConfig())
        return train(self.config, request, [*csv, *self.shared])

    def finish_loggers(self, metrics: Mapping[str, float | None]) -> None:
        """Logs the final numbers; trainings in processes of their own have logged before, so the ledger follows here."""
        if self.apart:
            self.shared = loggers_of(self.config, self.run_dir)[1:]
            self._log_ledger()
        finish(self.shared, metrics)

    def _public_data(self) -> dict[str, Any]:
        """Returns the data node of the first model; scenes painted only for it have no pool and no test images."""
        public = self.config["public"]
        if public.get("kind") != "synthetic" or public == self.config["data"]:
            return public
        return {**public, "splits": {split: public["splits"][split] for split in ("public", "val")}}

    def _on_line(self, line: LedgerLine) -> None:
        """Updates the files of the run that people look at after each round."""
        if self.people is not None and line.promoted:
            show_model(self.people, self.run_dir, line)
        join_metrics(self.run_dir)
        write_report(self.run_dir)
        if not self.apart:
            self._log_ledger()

    def _tell(self, message: str) -> None:
        """Tells people on their page what the engine does while it does not need them."""
        if self.people is not None:
            self.people.show_training(len(read_ledger(self.run_dir)), message)

    def _log_ledger(self) -> None:
        """Logs the ledger's lines to W&B, except those that the run of stage 1 has logged."""
        taken_over = first_round(self.config) if self.config["stage1_run"] else 0
        lines = [line.to_flat() for line in read_ledger(self.run_dir)]
        LedgerLogger(self.shared, self.run_dir, taken_over).log(lines, self.images_seen)
