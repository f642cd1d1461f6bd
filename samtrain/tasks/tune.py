"""`task=tune`: a sweep over the settings of an experiment that trains, driven by Optuna; killed, it goes on."""

from __future__ import annotations

import importlib.util
import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import instantiate

from samtrain.files import write_text
from samtrain.report.page import write_report
from samtrain.run.build import Config
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, num_ranks, write_metrics
from samtrain.tuning import Command, Sweep, Taken, TrialFailed, lock_of, open_study, read_space
from samtrain.tuning.study import BEAT, without_password
from samtrain.tuning.trials import Stopped, TrialKilled, run_to_its_end, shares

log = logging.getLogger(__name__)

OF_THE_SWEEP = ("task=", "tune=", "tune.", "+tune", "++tune", "~tune", "run_dir=", "hydra.", "callbacks.progress=")
NOT_THE_NUMBERS = ("data_dir=", "logger", "+logger", "loader.num_workers=")  # what may differ between processes of a study
WAIT = 2.0  # seconds, for trials that others are running
MAX_FAILURES = 5  # one after another, after which something else is wrong than the settings
MAX_KILLS = 3  # of one trial, after which it is likely to end so each time


def run(config: Config, run_dir: Path) -> Metrics:
    """Run the trials that are missing; write `tune.json`, `metrics.json` and `report.html`, and name the winner's command."""
    begin, settings = time.perf_counter(), config["tune"]
    _check(settings)
    command = _command(config, run_dir)
    dimensions = read_space(settings["space"], config, model=config["model"]["name"])
    storage = settings["storage"] or f"sqlite:///{(run_dir / 'study.db').resolve()}"
    numbers = [each for each in command.overrides if not each.startswith(NOT_THE_NUMBERS)]
    study = open_study(
        settings["study"],
        storage,
        dimensions,
        about={"metric": settings["metric"], "command": " ".join(numbers)},
        direction=settings["direction"],
        sampler=instantiate(settings["sampler"]),
        pruner=instantiate(settings["pruner"]),
    )
    folder = (run_dir / "trials").resolve()
    sweep = Sweep(study, dimensions, settings["num_trials"], settings["stale_after"], folder, lock_of(storage))
    page = _Page(run_dir, config, sweep, command)
    environments = shares(settings["num_workers"], _devices(config), torch.cuda.device_count())
    count, where = len(environments), without_password(storage)
    log.info("study %s in %s: %d trials, %d at once", settings["study"], where, sweep.num_trials, count)
    with _naming_storage():
        _at_once(environments, lambda env, stopped: _work(sweep, command, settings, page, env, stopped))

    page.write()
    best = sweep.best()
    if best is None:
        raise ValueError("no trial has finished: all were pruned or failed; see trials/*/output.log, tune.pruner")
    if settings["seeds"] and not best.user_attrs.get("default"):
        page.again = _again(sweep, command, settings, best, run_dir, environments)
    metrics: Metrics = {"tune/best": best.value, "tune/best_trial": float(best.number)}
    defaults = [each.value for each in sweep.trials() if each.default and each.state == "COMPLETE"]
    if defaults:
        metrics["tune/default"] = defaults[0]
    if page.again:
        metrics["tune/winner_minus_default"] = page.again["difference"]
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    page.write()
    for line in page.in_words():
        log.info("%s", line)
    log.info("report: %s", write_report(run_dir))
    return metrics


def _check(settings: dict[str, Any]) -> None:
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("task=tune needs Optuna, which is not installed: pip install 'samtrain[sweep]'")
    if num_ranks() > 1:
        raise ValueError(f"task=tune is one process and {num_ranks()} ranks were launched: set tune.num_workers instead")
    for key, least in (("num_trials", 1), ("num_workers", 1), ("stale_after", 3 * BEAT)):
        if not isinstance(settings[key], (int, float)) or settings[key] < least:
            raise ValueError(f"tune.{key} is {settings[key]!r}: take {least:g} or more")
    if settings["direction"] not in ("maximize", "minimize"):
        raise ValueError(f"tune.direction is {settings['direction']!r}: take maximize or minimize")


def _command(config: Config, run_dir: Path) -> Command:
    """What was typed when the run was begun, but for what concerns the sweep itself; ValueError without an experiment."""
    typed: list[str] = yaml.safe_load((run_dir / ".hydra" / "overrides.yaml").read_text())
    if not any(each.startswith(("+experiment=", "experiment=")) for each in typed):
        raise ValueError("task=tune needs an experiment that trains: +experiment=pretrain, +experiment=stage1, ...")
    kept = [each for each in typed if not each.startswith(OF_THE_SWEEP)]
    return Command((*kept, *config["tune"]["overrides"]))


def _devices(config: Config) -> int:
    """That a trial takes on this machine."""
    devices = config["trainer"]["devices"]
    return len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1


@contextmanager
def _naming_storage() -> Iterator[None]:
    """Errors of the database, which for Optuna are errors of its own, end in what to do."""
    import optuna

    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        raise ValueError(f"tune.storage does not answer any more ({error}): mend it and give the same command again") from error


# ---- who does what


def _at_once(environments: Sequence[dict[str, str]], work: Callable[[dict[str, str], threading.Event], None]) -> None:
    """`work(environment, stopped)` in a thread each, to their end; what goes wrong in one stops all, and is raised."""
    stopped = threading.Event()
    with ThreadPoolExecutor(len(environments)) as pool:
        workers = [pool.submit(work, each, stopped) for each in environments]
        try:
            while not all(worker.done() for worker in workers):
                if any(worker.done() and worker.exception() for worker in workers):
                    break
                time.sleep(0.2)
        finally:
            stopped.set()
    errors = [error for worker in workers if (error := worker.exception()) is not None]
    for error in sorted(errors, key=lambda each: isinstance(each, Stopped)):  # what stopped the others first
        raise error


def _work(
    sweep: Sweep,
    command: Command,
    settings: dict[str, Any],
    page: _Page,
    env: dict[str, str],
    stopped: threading.Event,
) -> None:
    """Trial after trial, until there is none left that anybody runs."""
    while not stopped.is_set():
        trial = sweep.next_trial()
        if trial is None:
            if not sweep.others():
                return
            stopped.wait(WAIT)
            continue
        values = {each.key: each.suggest(trial) for each in sweep.dimensions}
        log.info("trial %d: %s", trial.number, ", ".join(f"{key} {_short(value)}" for key, value in values.items()))
        try:
            failed = _one(sweep, trial, command.with_values(values), settings["metric"], env, stopped)
        except Taken as error:
            log.warning("trial %d was taken for dead by another process, which goes on with it (%s)", trial.number, error)
            continue
        with page.lock:
            page.write()
            page.failures = [*page.failures, failed] if failed else []
            _check_failures(page.failures, is_default=bool(trial.user_attrs.get("default")), number=trial.number)


def _one(
    sweep: Sweep, trial: Any, command: Command, metric: str, env: dict[str, str], stopped: threading.Event
) -> str:
    """Run a trial and tell Optuna how it ended; returns why it failed, "" where it did not."""
    begin = time.perf_counter()
    try:
        found = run_to_its_end(
            command,
            Path(trial.user_attrs["folder"]),
            metric,
            env,
            report=lambda number, value: sweep.report(trial, number, value),
            alive=lambda: sweep.alive(trial),
            stopped=stopped.is_set,
        )
    except TrialFailed as error:
        killed = isinstance(error, TrialKilled) and trial.user_attrs.get("killed", 0) + 1 < MAX_KILLS
        log.warning("trial %d %s: %s", trial.number, "was killed and goes on" if killed else "failed", error)
        if killed:
            sweep.give_back(trial)
            return ""
        sweep.fail(trial, str(error))
        return str(error)
    except Taken:
        raise
    except BaseException:
        sweep.give_back(trial)
        raise
    value, seconds = found[metric] if found else None, time.perf_counter() - begin
    sweep.finish(trial, value, seconds)
    ended = "pruned" if value is None else f"{metric} {value:.4f}"
    log.info("trial %d: %s in %.0f s", trial.number, ended, seconds)
    return ""


def _check_failures(failures: list[str], *, is_default: bool, number: int) -> None:
    """ValueError where it is not the settings that trials of this process fail by: the default does, or one after another."""
    if failures and (is_default or len(failures) >= MAX_FAILURES):
        why = "with the default setting" if is_default else f"like the {len(failures) - 1} before it"
        raise ValueError(f"trial {number} failed {why}: {failures[-1]}; once that is mended the same command goes on")


def _again(
    sweep: Sweep,
    command: Command,
    settings: dict[str, Any],
    best: Any,
    run_dir: Path,
    environments: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """Default and winner with other seeds, and what lies between them; {} where another process does it."""
    if not sweep.claim("again"):
        log.info("default and winner are run again by another process")
        return {}
    values = {"default": {each.key: each.default for each in sweep.dimensions}, "winner": dict(best.params)}
    folders = {"default": "default", "winner": f"trial_{best.number:03}"}  # a sweep that goes on may find another winner
    todo = [(name, seed) for seed in settings["seeds"] for name in values]
    found: dict[str, dict[str, float]] = {name: {} for name in values}
    lock = threading.Lock()

    def work(env: dict[str, str], stopped: threading.Event) -> None:
        while not stopped.is_set():
            with lock:
                if not todo:
                    return
                name, seed = todo.pop(0)
            metrics = run_to_its_end(
                command.with_values(values[name], [f"seed={seed}"]),
                run_dir / "again" / folders[name] / f"seed_{seed}",
                settings["compare_by"],
                env,
                report=lambda number, value: False,
                alive=lambda: None,
                stopped=stopped.is_set,
            )
            assert metrics is not None, "nothing prunes here"
            found[name][str(seed)] = metrics[settings["compare_by"]]
            log.info("%s with seed %d: %s %.4f", name, seed, settings["compare_by"], found[name][str(seed)])

    try:
        _at_once(environments, work)
    except TrialFailed as error:
        raise ValueError(f"running default and winner again failed: {error}") from error
    return _difference(settings["compare_by"], found)


def _difference(metric: str, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Winner minus default, by seed and on the mean."""
    seeds = sorted(found["default"], key=int)
    by_seed = {seed: found["winner"][seed] - found["default"][seed] for seed in seeds}
    return {
        "metric": metric,
        **{name: {seed: values[seed] for seed in seeds} for name, values in found.items()},
        "by_seed": by_seed,
        "difference": statistics.mean(by_seed.values()),
    }


# ---- what is left behind


class _Page:
    """`tune.json` and the report, written anew after each trial."""

    def __init__(self, run_dir: Path, config: Config, sweep: Sweep, command: Command) -> None:
        self.run_dir, self.settings, self.sweep, self.command = run_dir, config["tune"], sweep, command
        self.again: dict[str, Any] = {}
        self.failures: list[str] = []  # of this process, one after another up to now
        self.lock = threading.Lock()

    def write(self) -> None:
        write_text(self.run_dir / "tune.json", json.dumps(self.content(), indent=1) + "\n")
        write_report(self.run_dir)

    def content(self) -> dict[str, Any]:
        best = self.sweep.best()
        return {
            "metric": self.settings["metric"],
            "direction": self.settings["direction"],
            "num_trials": self.settings["num_trials"],
            "dimensions": [
                {"key": each.key, "default": each.default, "log": each.log, "choices": list(each.choices)}
                for each in self.sweep.dimensions
            ],
            "trials": [vars(trial) for trial in self.sweep.trials()],
            "importances": self.sweep.importances(),
            "best": None if best is None else self._best(best),
            "again": self.again,
        }

    def _best(self, best: Any) -> dict[str, Any]:
        is_default = bool(best.user_attrs.get("default"))
        return {"number": best.number, "value": best.value, "default": is_default, "command": self.winner(best)}

    def winner(self, best: Any) -> str:
        """The command of the best trial, without what only trials are given."""
        typed = self.command.overrides[: len(self.command.overrides) - len(self.settings["overrides"])]
        return str(Command(typed).with_values(best.params))

    def in_words(self) -> Sequence[str]:
        best, metric = self.sweep.best(), self.settings["metric"]
        states = [trial.state for trial in self.sweep.trials()]
        words = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed or killed", "RUNNING": "running"}
        lines = [", ".join(f"{states.count(state)} {word}" for state, word in words.items())]
        if best is None:
            return lines
        default = ", the default" if best.user_attrs.get("default") else ""
        lines.append(f"best: trial {best.number}, {metric} {best.value:.4f}{default}")
        if self.again:
            name, seeds = self.again["metric"], self.again["by_seed"]
            each = ", ".join(f"{value:+.4f}" for value in seeds.values())
            lines.append(f"winner minus default on {name}: {self.again['difference']:+.4f} ({len(seeds)} seeds: {each})")
        return [*lines, f"the winner's command: {self.winner(best)}"]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
