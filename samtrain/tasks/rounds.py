"""`task=rounds`: the data engine with Lightning inside: a first model if there is none, then round after round."""

from __future__ import annotations

import csv
import io
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from pytorch_lightning.loggers import Logger

from samtrain.data.datasets import Source
from samtrain.data.once import write_whole
from samtrain.data_engine.ledger import LedgerLine, read_ledger
from samtrain.data_engine.pieces import do_once
from samtrain.data_engine.rounds import DataEngine, FitRequest, FitResult, Probe, RoundConfig, promoted
from samtrain.loggers import make_loggers
from samtrain.modeling.build import load_sam, sam_config
from samtrain.report import write_report
from samtrain.tasks.build import Config, check_growth, device_of, learning_rate_of, make_predictor, sam_config_of
from samtrain.tasks.evaluate import difficulty_metrics, test_metrics
from samtrain.tasks.fit import costs, first_training
from samtrain.tasks.preflight import look_at
from samtrain.tasks.run_dir import Metrics, num_ranks, write_metrics
from samtrain.tasks.sets import PictureSet, is_native, open_set
from samtrain.tasks.training import Training, num_devices, train, validate
from samtrain.tasks.worker import train_apart

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """All rounds of `config.rounds`; the promoted model becomes `checkpoints/best.ckpt`, and `test/*` is its."""
    begin = time.perf_counter()
    if "rounds" not in config:
        raise ValueError("task=rounds has no rounds: take an experiment that has, +experiment=stage1")
    check_processes(config)
    check_growth_of_rounds(config)
    pictures = open_set(config["data"], config["data_dir"])
    if not pictures.val:
        raise ValueError("the rounds choose models by validation and no picture is held back for it: set data.val")
    work = Work(config, run_dir, pictures)
    work.look_at_pool()
    initial = work.first_model()
    best = work.engine(initial).run()
    work.log_ledger_at_the_end()

    # what the rounds were worth, on pictures that nothing was chosen by
    metrics: Metrics = {**promoted(read_ledger(run_dir)).metrics_after}
    metrics.update(test_metrics(config, load_sam(best), pictures, native=work.native))
    start = test_metrics(config, load_sam(initial), pictures, native=work.native)
    metrics.update({name.replace("test/", "test/start_"): value for name, value in start.items()})
    metrics.update(difficulty_metrics(config, pictures))
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    log.info("report: %s", write_report(run_dir))
    return metrics


class Work:
    """What the engine, which knows neither Hydra nor Lightning, is given to work with."""

    def __init__(self, config: Config, run_dir: Path, pictures: PictureSet) -> None:
        self.config, self.run_dir, self.pictures = config, run_dir, pictures
        self.native = is_native(config["data"], pictures, sam_config_of(config))
        annotator = {**config["annotator"], "seed": config["seed"]}
        self.annotator = instantiate(annotator)
        self.probe = Probe(
            annotator=instantiate({**annotator, "leaves_picture": False}), images=config["engine"]["probe_images"]
        )
        self.images_seen = 0  # by the first model's training
        self.measured: dict[Path, dict[str, float]] = {}  # val/* that a training has found for its best checkpoint
        # one run of W&B for all trainings; on several devices each is a process of its own that logs for itself
        self.apart = num_devices(config) > 1
        self.shared: list[Logger] = [] if self.apart else make_loggers(run_dir, config["logger"])[1:]

    def first_model(self) -> Path:
        """`config.checkpoint`, or a model pretrained on public data in `<run_dir>/pretrain`."""
        if self.config["checkpoint"] is not None:
            return Path(self.config["checkpoint"])
        config = {**self.config, "data": self._public()}
        public = open_set(config["data"], config["data_dir"])
        training = first_training(config, self.run_dir / "pretrain", public)

        def pretrain() -> dict[str, Any]:
            look_at(config, public, image_size=sam_config_of(config).image_size, native=training.native)
            result = self.train(training)
            return {"images_seen": result.images_seen, "metrics": result.metrics}

        done = do_once(training.directory / "fit.json", pretrain)
        self.images_seen = done.result["images_seen"]
        if config["data"] == self.config["data"]:
            self.measured[training.best] = done.result["metrics"]
        return training.best

    def engine(self, initial: Path) -> DataEngine:
        config, settings = self.config, self.config["engine"]
        return DataEngine(
            run_dir=self.run_dir,
            rounds=self._rounds(),
            pool=self.pictures.pool_tars(),
            annotator=self.annotator,
            probe=self.probe,
            load_predictor=self._load_predictor,
            fit=self._fit,
            measure=self._measure,
            initial=initial,
            seed=config["seed"],
            stage=settings["stage"],
            promote_metric=settings["promote_metric"],
            on_line=self._on_line,
        )

    def train(self, training: Training) -> FitResult:
        """In this process on one device, else in processes of their own."""
        if self.apart:
            return train_apart(self.run_dir, training, self.config["trainer"]["launcher"])
        csv = make_loggers(training.directory, {})
        return train(self.config, training, [*csv, *self.shared])

    def log_ledger_at_the_end(self) -> None:
        """Where trainings logged for themselves, the ledger comes after the last of them."""
        if self.apart:
            self.shared = make_loggers(self.run_dir, self.config["logger"])[1:]
            for line in read_ledger(self.run_dir):
                self._log_line(line)
        for logger in self.shared:
            logger.finalize("success")

    def _public(self) -> dict[str, Any]:
        """What a first model is trained on; of scenes that are only for this, no pool and no test are painted."""
        public = self.config["public"]
        if public["kind"] != "synthetic" or public == self.config["data"]:
            return public
        return {**public, "splits": {split: public["splits"][split] for split in ("public", "val")}}

    def look_at_pool(self) -> None:
        """What is wrong with the pictures of the rounds, before the time for a first model is spent."""
        pool = replace(self.pictures, public=[])
        if pool.pool:
            look_at(self.config, pool, image_size=sam_config_of(self.config).image_size, native=self.native)

    def _rounds(self) -> list[RoundConfig]:
        return [
            RoundConfig(
                model=each["model"],
                images=each["images"],
                steps=each["steps"],
                learning_rate=learning_rate_of(self.config, each["model"], each["learning_rate_factor"]),
            )
            for _, each in rounds_of(self.config)
        ]

    def _load_predictor(self, checkpoint: Path) -> Any:
        return make_predictor(load_sam(checkpoint).to(device_of(self.config)), native=self.native)

    def _fit(self, request: FitRequest) -> FitResult:
        assert request.learning_rate is not None, "_rounds gives each round its rate"
        training = Training(
            directory=request.directory,
            model=request.model,
            init=request.init,
            train=[Source(request.shards)],
            val=self.pictures.val,
            steps=request.steps,
            learning_rate=request.learning_rate,
            native=self.native,
            large_scale_jitter=self.config["engine"]["large_scale_jitter"],
            images_seen=request.images_seen or self.images_seen,
            key=f"rounds.{rounds_of(self.config)[request.round - 1][0]}.model",
        )
        result = self.train(training)
        self.measured[result.checkpoint] = result.metrics
        return result

    def _measure(self, checkpoint: Path) -> dict[str, float]:
        """As its training has found on the same pictures; after a kill in between it is measured again."""
        if known := self.measured.get(checkpoint):
            return known
        return validate(self.config, checkpoint, self.pictures.val, native=self.native)

    def _on_line(self, line: LedgerLine) -> None:
        join_metrics(self.run_dir)
        write_report(self.run_dir)
        if not self.apart:
            self._log_line(line)

    def _log_line(self, line: LedgerLine) -> None:
        """The numbers of a ledger line beside the curves."""
        numbers = {key: value for key, value in asdict(line).items() if isinstance(value, (int, float))}
        seen = numbers.pop("images_seen") or self.images_seen
        values = {f"ledger/{key}": float(value) for key, value in numbers.items()} | {"images_seen": float(seen)}
        for logger in self.shared:
            logger.log_metrics(values, step=line.round)


def rounds_of(config: Config) -> list[tuple[str, dict[str, Any]]]:
    """The rounds by their names in the order of these; ValueError for a name or a number that none can have."""
    rounds = config["rounds"]
    if wrong := [name for name in rounds if not str(name).isdigit()]:
        raise ValueError(f"rounds.{wrong[0]}: rounds are named by numbers, which give their order")
    for name, each in rounds.items():
        for key in ("images", "steps"):
            if not isinstance(each[key], int) or each[key] < 1:
                raise ValueError(f"rounds.{name}.{key} is {each[key]}: take 1 or more, or leave the round out, ~rounds.{name}")
    return sorted(rounds.items(), key=lambda item: int(item[0]))


def check_growth_of_rounds(config: Config) -> None:
    """Raises ValueError, before any time is spent, for a round whose model cannot come of one that it may find in use."""
    first = sam_config_of(config)
    if config["checkpoint"] is not None:
        first = load_sam(config["checkpoint"]).config
        if first.image_size != (wanted := config["model"]["image_size"] or first.image_size):
            raise ValueError(
                f"checkpoint is a model of {first.image_size} pixels and model.image_size is {wanted}: rounds are compared "
                f"at one size, set model.image_size={first.image_size}"
            )
    in_use = [first]
    for name, each in rounds_of(config):
        child = sam_config(each["model"], image_size=first.image_size)
        for parent in in_use:
            check_growth(config, parent, child, key=f"rounds.{name}.model")
        in_use.append(child)


def check_processes(config: Config) -> None:
    """The rounds are one process, which starts others for its trainings; ValueError where that cannot be."""
    if (ranks := num_ranks()) > 1:
        raise ValueError(
            f"task=rounds was launched {ranks} times side by side: launch it once, it starts its trainings itself; on "
            "several nodes by trainer.launcher, e.g. trainer.launcher=srun"
        )
    nodes, launcher = config["trainer"]["num_nodes"], config["trainer"]["launcher"]
    if nodes > 1 and launcher is None:
        raise ValueError(
            f"trainer.num_nodes is {nodes} and trainer.launcher null: say what starts a training on all nodes, e.g. "
            "trainer.launcher=srun, or set trainer.num_nodes=1"
        )


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
    write_whole(run_dir / "metrics.csv", text.getvalue())
