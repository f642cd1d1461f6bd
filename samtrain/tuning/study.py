"""Optuna's study, shared by any number of processes: who runs which trial, and how killed trials are resumed."""

from __future__ import annotations

import logging
import os
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samtrain.tuning.space import Dimension, Value
from samtrain.tuning.storage import exclusive

HEARTBEAT = 10.0  # seconds between two signs of life of a trial
ENDED = ("COMPLETE", "PRUNED")
ONE_TOO_MANY = "one trial too many: another process started the last one"

log = logging.getLogger(__name__)


class TrialTaken(Exception):
    """Another process took this trial for dead and ended it, so it no longer belongs to this process."""


@dataclass(frozen=True)
class TrialView:
    """A trial as the report shows it.

    value:   of a pruned trial the last measurement
    reason:  why the trial failed
    """

    number: int
    state: str
    params: dict[str, Value]
    value: float | None
    measurements: dict[int, float]
    folder: str
    seconds: float | None
    default: bool = False
    reason: str = ""


@dataclass
class Sweep:
    """The part of this process in a study. Methods raise `TrialTaken` if a trial no longer belongs to this process.

    num_trials:   how many trials of the study are to finish or be pruned; failed ones do not count
    stale_after:  seconds without a heartbeat after which a trial counts as killed; on this machine it is enough that its
                  process has ended
    folder:       where this process runs its trials
    lock:         a file that lets one process of this machine ask for a trial at a time, because SQLite would give two
                  processes the same one
    """

    study: Any
    dimensions: Sequence[Dimension]
    num_trials: int
    stale_after: float
    folder: Path
    lock: Path | None = None
    _heartbeats: dict[int, float] = field(default_factory=dict)  # by trial: when this process sent the last one

    # ---- the life of a trial

    def next_trial(self) -> Any | None:
        """Returns Optuna's next trial, or None if all have ended or are running; killed trials come first, then the default.

        The trial's `folder` is that of the trial that it resumes, if it resumes one.
        """
        with exclusive(self.lock):
            self._requeue_killed()
            if self._num_counted(None) >= self.num_trials:
                return None
            trial = self.study.ask()
            trial.set_user_attr("process", _this_process())
            if self._num_counted(trial.number) >= self.num_trials:  # a process on another machine was faster
                self.fail(trial, ONE_TOO_MANY)
                return None
            if "folder" not in trial.user_attrs:
                trial.set_user_attr("folder", str(self.folder / f"{trial.number:03}"))
            self.send_heartbeat(trial, now=True)
            return trial

    def send_heartbeat(self, trial: Any, *, now: bool = False) -> None:
        """Tells the other processes that this trial is running, at most once in `HEARTBEAT` seconds unless `now`."""
        if now or time.time() - self._heartbeats.get(trial.number, 0) > HEARTBEAT:
            self._heartbeats[trial.number] = time.time()
            with _still_ours():
                trial.set_user_attr("alive", time.time())

    def report(self, trial: Any, number: int, value: float) -> bool:
        """Stores a measurement and returns whether to prune the trial."""
        with _still_ours():
            trial.report(value, number)
        return trial.should_prune()

    def finish(self, trial: Any, value: float | None, seconds: float) -> None:
        """Ends a trial: with its value, or as pruned if there is none."""
        with _still_ours():
            trial.set_user_attr("seconds", seconds)
            self.study.tell(trial, value, state=_state("PRUNED") if value is None else None)

    def fail(self, trial: Any, reason: str) -> None:
        """Ends a trial as failed."""
        with _still_ours():
            trial.set_user_attr("reason", reason)
            self.study.tell(trial, state=_state("FAIL"))

    def give_back(self, trial: Any) -> None:
        """Ends a trial as failed and puts a trial that resumes its run at the front of the queue."""
        with exclusive(self.lock):
            self._requeue(self.study.trials[trial.number])

    def claim(self, work: str) -> bool:
        """Returns whether this process does a piece of work at the end, which only one of those at the study does."""
        owner = self.study.user_attrs.get(work)
        if owner is None or _has_ended(owner):
            self.study.set_user_attr(work, _this_process())
            owner = self.study.user_attrs.get(work)
        return owner == _this_process()

    # ---- the state of the study

    def num_running(self) -> int:
        """Returns how many trials are running, in any process."""
        return len(self.study.get_trials(deepcopy=False, states=(_state("RUNNING"),)))

    def trials(self) -> list[TrialView]:
        return [_view(trial) for trial in self.study.get_trials(deepcopy=False)]

    def best(self) -> Any | None:
        """Returns the finished trial with the best value, or None if no trial has finished."""
        done = self.study.get_trials(deepcopy=False, states=(_state("COMPLETE"),))
        return self.study.best_trial if done else None

    def importances(self) -> dict[str, float]:
        """Returns the share of each setting in the variation of the finished trials (PED-ANOVA), {} for too few trials."""
        import optuna

        done = self.study.get_trials(deepcopy=False, states=(_state("COMPLETE"),))
        if len(done) < 4 or len({trial.value for trial in done}) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            try:
                found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
            except (ValueError, RuntimeError) as error:  # raised if the best trials all have the same values
                log.info("The importance of the settings cannot be computed yet: %s", error)
                return {}
        return {name: float(value) for name, value in found.items()}

    # ---- killed trials

    def _num_counted(self, before: int | None) -> int:
        """Returns how many trials, or trials with smaller numbers, run or have ended without a failure."""
        trials = self.study.get_trials(deepcopy=False)
        counted = (*map(_state, ENDED), _state("RUNNING"))
        return sum(trial.state in counted and (before is None or trial.number < before) for trial in trials)

    def _requeue_killed(self) -> None:
        """Queues every running trial again that gives no sign of life."""
        for trial in self.study.get_trials(deepcopy=False, states=(_state("RUNNING"),)):
            if self._is_dead(trial):
                log.warning("Trial %d was killed; its run resumes as a new trial.", trial.number)
                self._requeue(trial)

    def _is_dead(self, trial: Any) -> bool:
        if _has_ended(trial.user_attrs.get("process", "")):
            return True
        return time.time() - trial.user_attrs.get("alive", _start_time(trial)) > self.stale_after

    def _requeue(self, trial: Any) -> None:
        """Fails a trial and queues a new one with its values and folder, unless another process has just done so."""
        try:
            with _still_ours():
                self.study.tell(trial.number, state=_state("FAIL"))
        except TrialTaken:
            return
        attrs = {key: trial.user_attrs[key] for key in ("folder", "default") if key in trial.user_attrs}
        attrs |= {"resumes": trial.number, "killed": trial.user_attrs.get("killed", 0) + 1}
        # a trial that was killed early does not have all of its values yet
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        self.study.enqueue_trial(params, user_attrs=attrs)


@contextmanager
def _still_ours() -> Iterator[None]:
    """Turns Optuna's errors about a trial that has ended into `TrialTaken`: ValueError, and RuntimeError from its storage."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise TrialTaken(str(error)) from error


def _view(trial: Any) -> TrialView:
    measured = dict(trial.intermediate_values)
    value = trial.value if trial.state.name == "COMPLETE" else measured[max(measured)] if measured else None
    return TrialView(
        number=trial.number,
        state=trial.state.name,
        params=dict(trial.params),
        value=value,
        measurements=measured,
        folder=str(trial.user_attrs.get("folder", "")),
        seconds=trial.user_attrs.get("seconds"),
        default=bool(trial.user_attrs.get("default")),
        reason=str(trial.user_attrs.get("reason", "")),
    )


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _start_time(trial: Any) -> float:
    return trial.datetime_start.timestamp() if trial.datetime_start else time.time()


def _this_process() -> str:
    return f"{platform.node()}:{os.getpid()}"


def _has_ended(process: str) -> bool:
    """Returns whether a process of this machine has ended; False for other machines, where this cannot be known."""
    host, _, pid = process.rpartition(":")
    if host != platform.node() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # a process that its parent has not waited for is a zombie
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
