"""`task=tune` searches the settings of an experiment that trains, with Optuna, and resumes after a kill."""

from __future__ import annotations

import importlib.util
import logging
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from samtrain.report.page import write_report
from samtrain.run.build import sam_config_of
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, num_ranks, write_metrics
from samtrain.run.image_sets import open_set
from samtrain.run.inputs import check_inputs
from samtrain.run.settings import Config, read
from samtrain.run.targets import build
from samtrain.terminal import counted
from samtrain.training.config import TrainerConfig
from samtrain.tuning import Command, Sweep, TuneConfig, lock_of, open_study, read_space
from samtrain.tuning.comparison import compare_with_default
from samtrain.tuning.loop import TrialLoop
from samtrain.tuning.record import SweepRecord
from samtrain.tuning.storage import explain_storage_errors, without_password
from samtrain.tuning.trials import worker_environments

log = logging.getLogger(__name__)

# overrides that concern the sweep, and not its trials
OF_THE_SWEEP = ("task=", "tune=", "tune.", "+tune", "++tune", "~tune", "run_dir=", "hydra.", "callbacks.progress=")
# overrides that may differ between the processes of a study, because they change no metric
NOT_THE_NUMBERS = ("data_dir=", "logger", "+logger", "loader.num_workers=")


def run(config: Config, run_dir: Path) -> Metrics:
    """Runs the missing trials, writes `tune.json`, `metrics.json` and `report.html`, and logs the winner's command."""
    begin, settings = time.perf_counter(), read(TuneConfig, config, "tune")
    _check()
    command = _command(settings, run_dir)
    _check_inputs(config, run_dir)
    sweep = _open_sweep(config, settings, command, run_dir)
    record = SweepRecord(run_dir, settings, sweep, command)
    num_devices = _num_devices(read(TrainerConfig, config, "trainer").devices)
    environments = worker_environments(settings.num_workers, num_devices, torch.cuda.device_count())
    # trials
    log.info("The sweep runs %s, %d at a time.", counted(sweep.num_trials, "trial"), len(environments))
    with explain_storage_errors():
        TrialLoop(sweep, command, settings.metric, on_trial=record.write).run(environments)
    record.write()
    best = sweep.best()
    if best is None:
        raise ValueError("no trial has finished, because all were pruned or failed: see trials/*/output.log, and tune.pruner")
    # the winner against the default
    if settings.seeds and not best.user_attrs.get("default"):
        record.comparison = compare_with_default(
            sweep, best, command, run_dir / "again", environments, seeds=settings.seeds, metric=settings.compare_by
        )
    # what the run leaves behind
    metrics: Metrics = {**_metrics(sweep, best, record.comparison), **costs(run_dir, begin)}
    write_metrics(run_dir, metrics)
    record.write()
    for line in record.summary_lines():
        log.info("%s", line)
    log.info("The report is %s", write_report(run_dir))
    return metrics


def _check() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("task=tune needs Optuna, which is not installed: pip install 'samtrain[sweep]'")
    if num_ranks() > 1:
        raise ValueError(f"{num_ranks()} ranks were launched, but task=tune is one process: launch one, set tune.num_workers")


def _check_inputs(config: Config, run_dir: Path) -> None:
    """Raises ValueError if later trials would be run on other images or weights than the first; scenes never differ."""
    is_painted = config["data"].get("kind") == "synthetic"
    check_inputs(config, run_dir, None if is_painted else open_set(config["data"], config["data_dir"]))


def _command(settings: TuneConfig, run_dir: Path) -> Command:
    """Returns the command of a trial: what was typed when the run began, without what concerns the sweep.

    Raises ValueError if no experiment was given.
    """
    typed: list[str] = yaml.safe_load((run_dir / ".hydra" / "overrides.yaml").read_text())
    if not any(each.startswith(("+experiment=", "experiment=")) for each in typed):
        raise ValueError("task=tune needs an experiment that trains: give +experiment=pretrain, +experiment=stage1, ...")
    kept = [each for each in typed if not each.startswith(OF_THE_SWEEP)]
    return Command((*kept, *settings.overrides))


def _open_sweep(config: Config, settings: TuneConfig, command: Command, run_dir: Path) -> Sweep:
    """Opens the study, or creates it."""
    named = any("{model}" in key for key in settings.space)  # a null model.name is the checkpoint's
    dimensions = read_space(settings.space, config, model=sam_config_of(config).model if named else None)
    storage = settings.storage or f"sqlite:///{(run_dir / 'study.db').resolve()}"
    numbers = [each for each in command.overrides if not each.startswith(NOT_THE_NUMBERS)]
    study = open_study(
        settings.study,
        storage,
        dimensions,
        about={"metric": settings.metric, "command": " ".join(numbers)},
        direction=settings.direction,
        sampler=build(settings.sampler, "tune.sampler"),
        pruner=None if settings.pruner is None else build(settings.pruner, "tune.pruner"),
    )
    log.info("The study %s is stored in %s.", settings.study, without_password(storage))
    folder = (run_dir / "trials").resolve()
    return Sweep(study, dimensions, settings.num_trials, settings.stale_after, folder, lock_of(storage))


def _num_devices(devices: int | list[int] | str) -> int:
    """Returns how many devices of this machine a trial uses."""
    return len(devices) if isinstance(devices, list) else int(devices)


def _metrics(sweep: Sweep, best: Any, comparison: dict[str, Any]) -> Metrics:
    metrics: Metrics = {"tune/best": best.value, "tune/best_trial": float(best.number)}
    defaults = [each.value for each in sweep.trials() if each.default and each.state == "COMPLETE"]
    if defaults:
        metrics["tune/default"] = defaults[0]
    if comparison:
        metrics["tune/winner_minus_default"] = comparison["difference"]
    return metrics
