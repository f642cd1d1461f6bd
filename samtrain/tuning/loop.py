"""The loop of a sweep: worker threads run trial after trial until none is left, and say how each of them ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samtrain.terminal import counted
from samtrain.tuning.space import Value
from samtrain.tuning.study import Sweep, TrialTaken
from samtrain.tuning.trials import Command, Stopped, TrialFailed, TrialKilled, run_trial

log = logging.getLogger(__name__)

WAIT_SECONDS = 2.0  # between two looks at trials that other processes run
MAX_FAILURES = 5  # in a row: after so many, the settings of the trials are not the cause
MAX_KILLS = 3  # of one trial: after so many, it would likely be killed again
Environment = dict[str, str]


@dataclass
class TrialLoop:
    """Runs the trials of a sweep in this process.

    metric:   what a trial returns to the study
    on_trial: called after each trial, by one thread at a time
    """

    sweep: Sweep
    command: Command
    metric: str
    on_trial: Callable[[], None] = lambda: None
    _failures: list[str] = field(default_factory=list)  # in a row up to now
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, environments: Sequence[Environment]) -> None:
        """Runs one trial at a time in each environment until no trial is left or running in any process.

        Raises ValueError if the default settings fail, or too many trials in a row.
        """
        run_in_threads(environments, self._work)

    def _work(self, env: Environment, stopped: threading.Event) -> None:
        while not stopped.is_set():
            trial = self.sweep.next_trial()
            if trial is None:
                if not self.sweep.num_running():
                    return
                stopped.wait(WAIT_SECONDS)  # a running trial may be killed and need a successor
                continue
            try:
                reason = self._run_one(trial, env, stopped)
            except TrialTaken as error:
                log.warning("Trial %d now belongs to another process, which took this one for dead: %s", trial.number, error)
                continue
            with self._lock:
                self.on_trial()
                self._failures = [*self._failures, reason] if reason else []
                self._check_failures(trial)

    def _run_one(self, trial: Any, env: Environment, stopped: threading.Event) -> str:
        """Runs a trial and tells Optuna how it ended; returns the reason if it failed, else ""."""
        values = {each.key: each.suggest(trial) for each in self.sweep.dimensions}
        log.info("Trial %d starts with %s.", trial.number, ", ".join(f"{k} {_short(v)}" for k, v in values.items()))
        begin = time.perf_counter()
        try:
            metrics = run_trial(
                self.command.with_values(values),
                Path(trial.user_attrs["folder"]),
                self.metric,
                env,
                stopped=stopped.is_set,
                should_prune=lambda number, value: self.sweep.report(trial, number, value),
                heartbeat=lambda: self.sweep.send_heartbeat(trial),
            )
        except TrialFailed as error:
            return self._handle_failure(trial, error)
        except TrialTaken:
            raise
        except BaseException:  # such as Stopped, or Ctrl-C: the run is to be resumed
            self.sweep.give_back(trial)
            raise
        value, seconds = metrics[self.metric] if metrics else None, time.perf_counter() - begin
        self.sweep.finish(trial, value, seconds)
        result = "was pruned" if value is None else f"has {self.metric} {value:.4f}"
        log.info("Trial %d %s after %.0f s.", trial.number, result, seconds)
        return ""

    def _handle_failure(self, trial: Any, error: TrialFailed) -> str:
        """Queues a killed trial again and returns ""; ends a failed one and returns the reason."""
        if isinstance(error, TrialKilled) and trial.user_attrs.get("killed", 0) + 1 < MAX_KILLS:
            log.warning("Trial %d was killed and will be resumed: %s", trial.number, error)
            self.sweep.give_back(trial)
            return ""
        log.warning("Trial %d failed: %s", trial.number, error)
        self.sweep.fail(trial, str(error))
        return str(error)

    def _check_failures(self, trial: Any) -> None:
        """Raises ValueError if trials do not fail because of their settings: the default does, or one after another."""
        is_default = bool(trial.user_attrs.get("default"))
        if self._failures and (is_default or len(self._failures) >= MAX_FAILURES):
            which = "with the default settings" if is_default else f"like {counted(len(self._failures) - 1, 'trial')} before it"
            raise ValueError(
                f"trial {trial.number} failed {which}: {self._failures[-1]}; fix the cause, and the same command resumes"
            )


def run_in_threads(
    environments: Sequence[Environment], work: Callable[[Environment, threading.Event], None]
) -> None:
    """Calls `work(environment, stopped)` in one thread per environment; an error in one stops all, and is raised."""
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
    for error in sorted(errors, key=lambda each: isinstance(each, Stopped)):  # the error that stopped the others comes first
        raise error


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
