"""Runs the default settings and the winner again with other seeds, to see how much better the winner is."""

from __future__ import annotations

import logging
import statistics
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samtrain.tuning.loop import Environment, run_in_threads
from samtrain.tuning.space import Value
from samtrain.tuning.study import Sweep
from samtrain.tuning.trials import Command, TrialFailed, run_trial

log = logging.getLogger(__name__)


def compare_with_default(
    sweep: Sweep,
    best: Any,
    command: Command,
    folder: Path,
    environments: Sequence[Environment],
    *,
    seeds: Sequence[int],
    metric: str,
) -> dict[str, Any]:
    """Returns the metric of default and winner for each seed, and their difference; {} if another process runs them."""
    if not sweep.claim("again"):
        log.info("Another process runs the default and the winner again.")
        return {}
    settings = {"default": {each.key: each.default for each in sweep.dimensions}, "winner": dict(best.params)}
    folders = {"default": "default", "winner": f"trial_{best.number:03}"}  # an extended sweep may have another winner
    todo = [(name, seed) for seed in seeds for name in settings]
    found: dict[str, dict[str, float]] = {name: {} for name in settings}
    lock = threading.Lock()

    def work(env: Environment, stopped: threading.Event) -> None:
        while not stopped.is_set():
            with lock:
                if not todo:
                    return
                name, seed = todo.pop(0)
            seeded = command.with_values(settings[name], [f"seed={seed}"])
            metrics = run_trial(seeded, folder / folders[name] / f"seed_{seed}", metric, env, stopped=stopped.is_set)
            assert metrics is not None, "nothing prunes these runs"
            found[name][str(seed)] = metrics[metric]
            log.info("The %s with seed %d has %s %.4f.", name, seed, metric, metrics[metric])

    try:
        run_in_threads(environments, work)
    except TrialFailed as error:
        raise ValueError(
            f"a run of the default and the winner with other seeds failed: {error}; fix the cause and run the same command "
            "again, or set tune.seeds=[]"
        ) from error
    return _difference(metric, found)


def _difference(metric: str, found: Mapping[str, Mapping[str, float]]) -> dict[str, Value | dict[str, float]]:
    """Returns winner minus default, for each seed and on average."""
    seeds = sorted(found["default"], key=int)
    by_seed = {seed: found["winner"][seed] - found["default"][seed] for seed in seeds}
    return {
        "metric": metric,
        **{name: {seed: values[seed] for seed in seeds} for name, values in found.items()},
        "by_seed": by_seed,
        "difference": statistics.mean(by_seed.values()),
    }
