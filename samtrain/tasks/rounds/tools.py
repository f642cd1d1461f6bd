"""What the data engine, which knows neither Hydra nor Lightning, is given to work with."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from pytorch_lightning.loggers import Logger

from samtrain.data.datasets import Source
from samtrain.data.image_set import ImageSet
from samtrain.data_engine.engine import DataEngine
from samtrain.data_engine.ledger import read_ledger
from samtrain.data_engine.ledger_line import LedgerLine
from samtrain.data_engine.pool import Pool, divide_pool
from samtrain.data_engine.prefill import PrefillConfig
from samtrain.data_engine.stages import DetectorRequest, FitRequest, FitResult, Probe, RoundConfig, Stage
from samtrain.detector import MAX_DETECTIONS, Detector, load_detector, train_detector
from samtrain.files import do_once, write_text
from samtrain.modeling.build import load_sam
from samtrain.report import write_report
from samtrain.run.build import Config, device_of, learning_rate_of, loggers_of, make_predictor, sam_config_of
from samtrain.run.image_sets import data_config, is_native, open_set, pool_of_stage_2
from samtrain.run.preflight import check_images
from samtrain.run.settings import read
from samtrain.run.training import train, validate
from samtrain.run.worker import train_apart
from samtrain.tasks.detector import options_of, recipe_of
from samtrain.tasks.detector import test_metrics as box_test_metrics
from samtrain.tasks.fit import fit_request
from samtrain.tasks.rounds.schedule import SEMI_AUTOMATIC, STAGES, first_round, rounds_of
from samtrain.training.config import TrainerConfig
from samtrain.training.loggers import LedgerLogger, LoggerConfig, finish, make_loggers

log = logging.getLogger(__name__)


class EngineTools:
    """Trains, measures and loads for the engine, and opens what it annotates."""

    def __init__(self, config: Config, run_dir: Path, images: ImageSet) -> None:
        self.config, self.run_dir, self.images = config, run_dir, images
        self.native = is_native(config["data"], images, sam_config_of(config))
        self.stages = self._stages()
        self.images_seen = 0  # by the first model's training
        self.measured: dict[Path, dict[str, float]] = {}  # val/* that a training has found for its best checkpoint
        # one run of W&B for all trainings; on several devices each is a process of its own that logs for itself
        self.apart = read(TrainerConfig, config, "trainer").num_devices > 1
        self.shared: list[Logger] = [] if self.apart else loggers_of(config, run_dir)[1:]

    def first_model(self) -> Path:
        """`config.checkpoint`, or a model pretrained on public data in `<run_dir>/pretrain`."""
        if self.config["checkpoint"] is not None:
            return Path(self.config["checkpoint"])
        config = {**self.config, "data": self._public()}
        public = open_set(config["data"], config["data_dir"])
        request = fit_request(config, self.run_dir / "pretrain", public)

        def pretrain() -> dict[str, Any]:
            check_images(config, public, image_size=sam_config_of(config).image_size, native=request.native)
            result = self.train(request)
            return {"images_seen": result.images_seen, "metrics": result.metrics}

        done = do_once(request.directory / "fit.json", pretrain)
        self.images_seen = done.result["images_seen"]
        if config["data"] == self.config["data"]:
            self.measured[request.best] = done.result["metrics"]
        return request.best

    def engine(self, initial: Path) -> DataEngine:
        settings = self.config["engine"]
        return DataEngine(
            run_dir=self.run_dir,
            stages=self.stages,
            tools=self,
            initial=initial,
            first_round=first_round(self.config),
            seed=self.config["seed"],
            promote_metric=settings["promote_metric"],
            size_limits=tuple(self.config["size_limits"]),
            on_error=data_config(self.config["data"]).on_error,
            on_line=self._on_line,
        )

    def test_detector(self, ledger: list[LedgerLine]) -> dict[str, float]:
        """`test/box_ap`, ... of the last detector, if there is one."""
        detector = ledger[-1].detector
        if detector is None:
            return {}
        return box_test_metrics(self.config, load_detector(self.run_dir / detector.checkpoint), self.images)

    def train(self, request: FitRequest) -> FitResult:
        """In this process on one device, else in processes of their own."""
        if self.apart:
            return train_apart(self.run_dir, request, read(TrainerConfig, self.config, "trainer").launcher)
        csv = make_loggers(request.directory, LoggerConfig())
        return train(self.config, request, [*csv, *self.shared])

    def finish_loggers(self, metrics: Mapping[str, float | None]) -> None:
        """Where trainings logged for themselves, the ledger comes after the last of them; then the final numbers."""
        if self.apart:
            self.shared = loggers_of(self.config, self.run_dir)[1:]
            self._log_ledger()
        finish(self.shared, metrics)

    def _public(self) -> dict[str, Any]:
        """What a first model is trained on; of scenes that are only for this, no pool and no test are painted."""
        public = self.config["public"]
        if public.get("kind") != "synthetic" or public == self.config["data"]:
            return public
        return {**public, "splits": {split: public["splits"][split] for split in ("public", "val")}}

    def look_at_pools(self) -> None:
        """What is wrong with the images of the rounds, or with their number, before the time for a first model is spent."""
        for stage in self.stages:
            if not stage.pool:
                continue
            images = replace(self.images, public=[], pool=[Source(stage.pool)])
            check_images(self.config, images, image_size=sam_config_of(self.config).image_size, native=self.native)
            counts = [each.images for each in stage.rounds]
            pool = Pool(stage.pool, data_config(self.config["data"]).on_error)
            divide_pool(len(pool), counts, stage.probe.images if stage.probe else 0)

    def _stages(self) -> list[Stage]:
        config = self.config
        annotator = {**config["annotator"], "seed": config["seed"]}
        patient = instantiate({**annotator, "leaves_image": False})
        probe_images = {name: config["engine"]["probe_images"] for name in STAGES}
        probe_images[SEMI_AUTOMATIC] = config["engine"]["probe_images_stage_2"]
        rounds: dict[str, list[RoundConfig]] = {}
        for name, each in rounds_of(config):
            rounds.setdefault(each["stage"], []).append(self._round(name, each))
        return [
            Stage(
                name=name,
                rounds=own,
                pool=self._pool(name),
                annotator=instantiate(annotator),
                probe=Probe(annotator=patient, images=probe_images[name]),
                prefill=self._prefill() if name == SEMI_AUTOMATIC else None,
            )
            for name, own in rounds.items()
        ]

    def _prefill(self) -> PrefillConfig:
        prefill = instantiate(self.config["prefill"])
        if prefill.max_detections > MAX_DETECTIONS:
            raise ValueError(f"prefill.max_detections is {prefill.max_detections}: a detector gives {MAX_DETECTIONS} at most")
        return prefill

    def _round(self, name: str, each: dict[str, Any]) -> RoundConfig:
        return RoundConfig(
            model=each["model"],
            images=each["images"],
            steps=each["steps"],
            learning_rate=learning_rate_of(self.config, each["model"], each["learning_rate_factor"]),
            detector_steps=each.get("detector_steps", 0),
            model_key=f"rounds.{name}.model",
        )

    def _pool(self, stage: str) -> list[str]:
        if stage == SEMI_AUTOMATIC:
            return pool_of_stage_2(self.config["data"], self.config["data_dir"], self.images)
        return self.images.pool_tars()

    def load_predictor(self, checkpoint: Path) -> Any:
        return make_predictor(load_sam(checkpoint).to(device_of(self.config)), native=self.native)

    def fit(self, request: FitRequest) -> FitResult:
        request = replace(
            request,
            val=self.images.val,
            native=self.native,
            large_scale_jitter=self.config["engine"]["large_scale_jitter"],
            images_seen=request.images_seen or self.images_seen,
        )
        result = self.train(request)
        self.measured[result.checkpoint] = result.metrics
        return result

    def fit_detector(self, request: DetectorRequest) -> Path:
        """Trains in this process, on one device, without validation: the last weights count."""
        return train_detector(
            [Source(request.shards, last_counts=True)],
            request.directory,
            recipe=replace(recipe_of(self.config), steps=request.steps, val_every_steps=None),
            seed=self.config["seed"],
            init=request.init,
            options=options_of(self.config),
        )

    def load_detector(self, path: Path) -> Detector:
        return load_detector(path).to(device_of(self.config))

    def measure(self, checkpoint: Path) -> dict[str, float]:
        """As its training has found on the same images; after a kill in between it is measured again."""
        if known := self.measured.get(checkpoint):
            return known
        return validate(self.config, checkpoint, self.images.val, native=self.native)

    def _on_line(self, line: LedgerLine) -> None:
        join_metrics(self.run_dir)
        write_report(self.run_dir)
        if not self.apart:
            self._log_ledger()

    def _log_ledger(self) -> None:
        """Logs the ledger's lines to W&B, except those that the run of stage 1 has logged."""
        taken_over = first_round(self.config) if self.config["stage1_run"] else 0
        lines = [line.to_flat() for line in read_ledger(self.run_dir)]
        LedgerLogger(self.shared, self.run_dir, taken_over).log(lines, self.images_seen)


def join_metrics(run_dir: Path) -> None:
    """The `metrics.csv` of all trainings in one, with the round that each row belongs to; 0 is the first model's."""
    files = {int(path.parts[-3]): path for path in run_dir.glob("rounds/*/fit/metrics.csv")}
    if (run_dir / "pretrain" / "metrics.csv").is_file():
        files[0] = run_dir / "pretrain" / "metrics.csv"
    rows: list[dict[str, str]] = []
    for number, path in sorted(files.items()):
        with open(path, newline="") as file:
            rows += [{"round": str(number), **row} for row in csv.DictReader(file)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(run_dir / "metrics.csv", text.getvalue())
