"""Optuna's study, shared by any number of processes: who runs which trial, and what became of those that were killed."""

from __future__ import annotations

import logging
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samtrain.files import locked
from samtrain.tuning.space import Dimension, Value

BEAT = 10.0  # seconds between two signs of life
ENDED = ("COMPLETE", "PRUNED")
ONE_TOO_MANY = "one too many: another process had the last"

log = logging.getLogger(__name__)


class Taken(Exception):
    """Another process has taken a trial for dead and ended it: it is no longer this one's."""


@dataclass(frozen=True)
class TrialView:
    """A trial as a page shows it; `value` is the last measurement of one that was pruned. `reason`: why it failed."""

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
    """A study and this process's part in it; all methods raise `Taken` where a trial is no longer this process's.

    num_trials:   that end, finished or pruned; failed ones do not count
    stale_after:  seconds without a sign of life after which a trial is taken for killed; on this machine a dead process is
                  enough
    folder:       where this process runs its trials
    lock:         a file by which processes of this machine wait for each other: SQLite gives two of them one trial
    """

    study: Any
    dimensions: Sequence[Dimension]
    num_trials: int
    stale_after: float
    folder: Path
    lock: Path | None = None
    _said: dict[int, float] = field(default_factory=dict)  # when a trial last gave a sign of life

    def next_trial(self) -> Any | None:
        """Optuna's next trial, None where all are ended or being run; those that were killed are taken up first.

        The default is the first. A trial's `folder` is that of the one that it goes on with.
        """
        with alone(self.lock):
            self._take_up_killed()
            if self._counted(None) >= self.num_trials:
                return None
            trial = self.study.ask()
            trial.set_user_attr("process", _this_process())
            if self._counted(trial.number) >= self.num_trials:  # a process on another machine was faster
                self.fail(trial, ONE_TOO_MANY)
                return None
            if "folder" not in trial.user_attrs:
                trial.set_user_attr("folder", str(self.folder / f"{trial.number:03}"))
            self.alive(trial, now=True)
            return trial

    def alive(self, trial: Any, *, now: bool = False) -> None:
        """A sign of life, at most one each `BEAT` seconds."""
        if now or time.time() - self._said.get(trial.number, 0) > BEAT:
            self._said[trial.number] = time.time()
            with _ours():
                trial.set_user_attr("alive", time.time())

    def report(self, trial: Any, number: int, value: float) -> bool:
        """Whether the trial is not worth going on after this measurement."""
        with _ours():
            trial.report(value, number)
        return trial.should_prune()

    def finish(self, trial: Any, value: float | None, seconds: float) -> None:
        """Finished with a value, or pruned."""
        with _ours():
            trial.set_user_attr("seconds", seconds)
            self.study.tell(trial, value, state=_state("PRUNED") if value is None else None)

    def fail(self, trial: Any, reason: str) -> None:
        with _ours():
            trial.set_user_attr("reason", reason)
            self.study.tell(trial, state=_state("FAIL"))

    def give_back(self, trial: Any) -> None:
        """Fail a trial whose run is to be gone on with, and put it first in the queue."""
        with alone(self.lock):
            self._again(self.study.trials[trial.number])

    def others(self) -> int:
        """Trials that are being run, by whichever process."""
        return len(self.study.get_trials(deepcopy=False, states=(_state("RUNNING"),)))

    def trials(self) -> list[TrialView]:
        return [_view(trial) for trial in self.study.get_trials(deepcopy=False)]

    def best(self) -> Any | None:
        """The finished trial of the best value."""
        done = self.study.get_trials(deepcopy=False, states=(_state("COMPLETE"),))
        return self.study.best_trial if done else None

    def importances(self) -> dict[str, float]:
        """Each key's share in what the finished trials' values differ by (PED-ANOVA); {} where there are too few."""
        import optuna

        done = self.study.get_trials(deepcopy=False, states=(_state("COMPLETE"),))
        if len(done) < 4 or len({trial.value for trial in done}) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            try:
                found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
            except (ValueError, RuntimeError) as error:  # all of the best have the same values
                log.info("no importances: %s", error)
                return {}
        return {name: float(value) for name, value in found.items()}

    def claim(self, work: str) -> bool:
        """Whether a piece of work at the end is this process's: of several that share the study one does it."""
        owner = self.study.user_attrs.get(work)
        if owner is None or _has_ended(owner):
            self.study.set_user_attr(work, _this_process())
            owner = self.study.user_attrs.get(work)
        return owner == _this_process()

    def _counted(self, before: int | None) -> int:
        """Trials that have not failed, of those with smaller numbers; waiting ones are not begun."""
        trials = self.study.get_trials(deepcopy=False)
        counted = (*map(_state, ENDED), _state("RUNNING"))
        return sum(trial.state in counted and (before is None or trial.number < before) for trial in trials)

    def _is_dead(self, trial: Any) -> bool:
        if _has_ended(trial.user_attrs.get("process", "")):
            return True
        return time.time() - trial.user_attrs.get("alive", _begun(trial)) > self.stale_after

    def _take_up_killed(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(_state("RUNNING"),)):
            if self._is_dead(trial):
                log.warning("trial %d was killed and goes on", trial.number)
                self._again(trial)

    def _again(self, trial: Any) -> None:
        """Of several processes that find a killed trial the one that may fail it puts it into the queue again."""
        try:
            with _ours():
                self.study.tell(trial.number, state=_state("FAIL"))
        except Taken:
            return
        attrs = {key: trial.user_attrs[key] for key in ("folder", "default") if key in trial.user_attrs}
        attrs |= {"goes_on_with": trial.number, "killed": trial.user_attrs.get("killed", 0) + 1}
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}  # killed before it knew all of them
        self.study.enqueue_trial(params, user_attrs=attrs)


def open_study(
    name: str,
    storage: str,
    dimensions: Sequence[Dimension],
    *,
    about: Mapping[str, str],
    direction: Any,
    sampler: Any,
    pruner: Any,
) -> Any:
    """The study of this name, or a new one, with the default in its queue where it has not been run or has failed.

    about: what else decides its numbers, the metric and the command say. Raises ValueError for a storage that cannot be
    opened, or a study of another space, direction or something else.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    about = {**about, "direction": direction, **{each.key: _words(each) for each in dimensions}}
    pruner = pruner or optuna.pruners.NopPruner()
    default = {each.key: each.default for each in dimensions}
    with alone(lock_of(storage)):
        kept = _storage(storage)
        try:
            study = optuna.create_study(study_name=name, storage=kept, sampler=sampler, pruner=pruner, direction=direction)
            _queue_default(study, default)
            study.set_user_attr("about", about)  # last: others wait for it
        except optuna.exceptions.DuplicatedStudyError:
            sampler.reseed_rng()  # or two processes would propose the same
            study = optuna.load_study(study_name=name, storage=kept, sampler=sampler, pruner=pruner)
        stored = _about(study) or about
        if stored != about:
            keys = sorted(key for key in stored.keys() | about.keys() if stored.get(key) != about.get(key))
            differing = "; ".join(f"{key}: {stored.get(key)} there, {about.get(key)} here" for key in keys)
            raise ValueError(f"the study {name!r} is another one ({differing}): take the same settings, or another tune.study")
        _queue_default(study, default)
    return study


def lock_of(storage: str) -> Path | None:
    """Beside an SQLite file; servers look after themselves. ValueError for what is no URL."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
    except ArgumentError as error:
        raise ValueError(f"tune.storage is no URL ({error}): take sqlite:///FILE or postgresql://...") from error
    return Path(f"{url.database}.lock") if url.drivername.startswith("sqlite") and url.database else None


def without_password(storage: str) -> str:
    """For the log."""
    from sqlalchemy.engine import make_url

    return make_url(storage).render_as_string(hide_password=True)


def alone(lock: Path | None) -> AbstractContextManager[None]:
    """One process and thread at a time, where there is a lock file; the system frees it when its holder dies."""
    return locked(lock) if lock else nullcontext()


def _storage(url: str) -> Any:
    """Opened, with its tables; processes on several machines that make them at once get in each other's way: it is tried
    again."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    patient = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for tries_left in reversed(range(5)):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=patient)
        except (SQLAlchemyError, ImportError) as error:
            if not tries_left or isinstance(error, ImportError):
                said = str(error).splitlines()[0]
                raise ValueError(
                    f"tune.storage {without_password(url)} cannot be opened ({said}): take sqlite:///FILE or postgresql://..."
                ) from error
            time.sleep(0.5)


def _about(study: Any) -> dict[str, str] | None:
    """What the study was begun with; None where whoever began it was killed before it could say."""
    for _ in range(20):
        if "about" in study.user_attrs:
            return study.user_attrs["about"]
        time.sleep(0.1)
    return None


def _queue_default(study: Any, params: dict[str, Value]) -> None:
    """Unless it waits, runs or has ended."""
    there = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("default")]
    if not any(trial.state.name in (*ENDED, "WAITING", "RUNNING") for trial in there):
        study.enqueue_trial(params, user_attrs={"default": True})


@contextmanager
def _ours() -> Iterator[None]:
    """Optuna says ValueError, or UpdateFinishedTrialError, a RuntimeError, of a trial that has ended meanwhile."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise Taken(str(error)) from error


def _words(dimension: Dimension) -> str:
    if dimension.choices:
        return "one of " + ", ".join(map(str, dimension.choices))
    extra = ", logarithmic" if dimension.log else f", step {dimension.step}" if dimension.step else ""
    return f"{dimension.low} to {dimension.high}{extra}"


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


def _begun(trial: Any) -> float:
    return trial.datetime_start.timestamp() if trial.datetime_start else time.time()


def _this_process() -> str:
    return f"{platform.node()}:{os.getpid()}"


def _has_ended(process: str) -> bool:
    """Whether a process of this machine is gone; of another machine's nobody knows."""
    host, _, pid = process.rpartition(":")
    if host != platform.node() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # one that nobody has waited for is a zombie
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
