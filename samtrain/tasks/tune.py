"""`task=tune`: a sweep over the settings of an experiment that trains, driven by Optuna; killed, it goes on."""

from __future__ import annotations

import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import instantiate

from samtrain.data.once import write_whole
from samtrain.report.page import write_report
from samtrain.tasks.build import Config
from samtrain.tasks.fit import costs
from samtrain.tasks.run_dir import Metrics, write_metrics
from samtrain.tuning import Command, Sweep, TrialFailed, open_study, read_space
from samtrain.tuning.trials import Stopped, run_to_its_end, share_of

log = logging.getLogger(__name__)

OF_THE_SWEEP = ("task=", "tune=", "tune.", "+tune", "++tune", "~tune", "run_dir=", "hydra.", "callbacks.progress=")
WAIT = 2.0  # seconds, for trials that others are running
MAX_FAILURES = 5  # one after another, after which something else is wrong than the settings


def run(config: Config, run_dir: Path) -> Metrics:
    """Run the trials that are missing; write `tune.json`, `metrics.json` and `report.html`, and name the winner's command."""
    begin, settings = time.perf_counter(), config["tune"]
    command = _command(config, run_dir)
    dimensions = read_space(settings["space"], config, model=config["model"]["name"])
    storage = settings["storage"] or f"sqlite:///{(run_dir / 'study.db').resolve()}"
    study = open_study(
        settings["study"],
        storage,
        dimensions,
        direction=settings["direction"],
        sampler=instantiate(settings["sampler"]),
        pruner=instantiate(settings["pruner"]),
    )
    sweep = Sweep(study, dimensions, settings["num_trials"], settings["stale_after"], (run_dir / "trials").resolve())
    page = _Page(run_dir, config, sweep, command)
    log.info("study %s in %s: %d trials, %d at once", settings["study"], storage, sweep.num_trials, settings["num_workers"])
    _at_once(settings["num_workers"], lambda env, stopped: _work(sweep, command, settings, page, env, stopped))

    page.write()
    best = sweep.best()
    if best is None:
        raise ValueError("no trial has finished: all were pruned or failed; see trials/*/output.log, tune.pruner")
    if settings["seeds"] and best.number != 0:
        page.again = _again(sweep, command, settings, dict(best.params), run_dir)
    metrics: Metrics = {"tune/best": best.value, "tune/best_trial": float(best.number)}
    default = next((t for t in sweep.trials() if t.number == 0), None)
    if default is not None and default.value is not None:
        metrics["tune/default"] = default.value
    if page.again:
        metrics["tune/winner_minus_default"] = page.again["difference"]
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    page.write()
    for line in page.in_words():
        log.info("%s", line)
    log.info("report: %s", write_report(run_dir))
    return metrics


def _command(config: Config, run_dir: Path) -> Command:
    """What was typed, but for what concerns the sweep itself; ValueError where that trains nothing."""
    settings = config["tune"]
    for key in ("num_trials", "num_workers"):
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise ValueError(f"tune.{key} is {settings[key]!r}: take a whole number of 1 and more")
    if settings["direction"] not in ("maximize", "minimize"):
        raise ValueError(f"tune.direction is {settings['direction']!r}: take maximize or minimize")
    typed: list[str] = yaml.safe_load((run_dir / ".hydra" / "overrides.yaml").read_text())
    if not any(each.startswith(("+experiment=", "experiment=")) for each in typed):
        raise ValueError("task=tune needs an experiment that trains: +experiment=pretrain, +experiment=stage1, ...")
    kept = [each for each in typed if not each.startswith(OF_THE_SWEEP)]
    return Command((*kept, *settings["overrides"]))


# ---- who does what


def _at_once(count: int, work: Callable[[dict[str, str], threading.Event], None]) -> None:
    """`work(environment, stopped)` in so many threads, to their end; an interruption or an error of one stops all, and is
    raised."""
    stopped = threading.Event()
    with ThreadPoolExecutor(count) as pool:
        shares = [share_of(i, count, torch.cuda.device_count()) for i in range(count)]
        workers = [pool.submit(work, share, stopped) for share in shares]
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
        with page.lock:
            trial = sweep.next_trial()
        if trial is None:
            if not sweep.others():
                return
            stopped.wait(WAIT)
            continue
        values = {each.key: each.suggest(trial) for each in sweep.dimensions}
        log.info("trial %d: %s", trial.number, ", ".join(f"{key} {_short(value)}" for key, value in values.items()))
        _one(sweep, trial, command.with_values(values), settings["metric"], env, stopped)
        with page.lock:
            page.write()
            _check_failures(sweep)


def _one(
    sweep: Sweep, trial: Any, command: Command, metric: str, env: dict[str, str], stopped: threading.Event
) -> None:
    """Run a trial and tell Optuna how it ended."""
    begin = time.perf_counter()

    def report(number: int, value: float) -> bool:
        trial.report(value, number)
        return trial.should_prune()

    try:
        found = run_to_its_end(
            command,
            Path(trial.user_attrs["folder"]),
            metric,
            env,
            report=report,
            alive=lambda: sweep.alive(trial),
            stopped=stopped.is_set,
        )
    except TrialFailed as error:
        log.warning("trial %d failed: %s", trial.number, error)
        sweep.fail(trial, str(error))
        return
    except BaseException:
        sweep.give_back(trial)
        raise
    value, seconds = found[metric] if found else None, time.perf_counter() - begin
    sweep.finish(trial, value, seconds)
    ended = "pruned" if value is None else f"{metric} {value:.4f}"
    log.info("trial %d: %s in %.0f s", trial.number, ended, seconds)


def _check_failures(sweep: Sweep) -> None:
    """ValueError where it is not the settings that trials fail by."""
    ended = [trial for trial in sweep.trials() if trial.state in ("COMPLETE", "PRUNED", "FAIL")]
    failed = [trial for trial in ended if trial.state == "FAIL" and trial.reason and "one too many" not in trial.reason]
    last = ended[-MAX_FAILURES:]
    if any(trial.number == 0 for trial in failed) or (len(last) == MAX_FAILURES and all(t in failed for t in last)):
        first = failed[0] if failed[0].number == 0 else failed[-1]
        raise ValueError(
            f"trial {first.number} failed{' with the default setting' if first.number == 0 else ', like those before it'}: "
            f"{first.reason}"
        )


def _again(
    sweep: Sweep, command: Command, settings: dict[str, Any], values: dict[str, Any], run_dir: Path
) -> dict[str, Any]:
    """Default and winner with other seeds, and what lies between them; {} where another process does it."""
    if not sweep.claim("again"):
        log.info("default and winner are run again by another process")
        return {}
    default = {each.key: each.default for each in sweep.dimensions}
    todo = [(name, seed) for seed in settings["seeds"] for name in ("default", "winner")]
    found: dict[str, dict[str, float]] = {"default": {}, "winner": {}}
    lock = threading.Lock()

    def work(env: dict[str, str], stopped: threading.Event) -> None:
        while not stopped.is_set():
            with lock:
                if not todo:
                    return
                name, seed = todo.pop(0)
            given = command.with_values(default if name == "default" else values, [f"seed={seed}"])
            metrics = run_to_its_end(
                given,
                run_dir / "again" / name / f"seed_{seed}",
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
        _at_once(settings["num_workers"], work)
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
        self.lock = threading.Lock()

    def write(self) -> None:
        write_whole(self.run_dir / "tune.json", json.dumps(self.content(), indent=1) + "\n")
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
            "best": None if best is None else {"number": best.number, "value": best.value, "command": self.winner(best)},
            "again": self.again,
        }

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
        lines.append(f"best: trial {best.number}, {metric} {best.value:.4f}" + (", the default" if best.number == 0 else ""))
        if self.again:
            name, seeds = self.again["metric"], self.again["by_seed"]
            each = ", ".join(f"{value:+.4f}" for value in seeds.values())
            lines.append(f"winner minus default on {name}: {self.again['difference']:+.4f} ({len(seeds)} seeds: {each})")
        return [*lines, f"the winner's command: {self.winner(best)}"]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
