"""Optuna's study, shared by any number of processes: who runs which trial, and what became of those that were killed."""

from __future__ import annotations

import logging
import os
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samtrain.tuning.space import Dimension, Value

BEAT = 10.0  # seconds between two signs of life
ENDED = ("COMPLETE", "PRUNED")

log = logging.getLogger(__name__)


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
    reason: str = ""


@dataclass
class Sweep:
    """A study and this process's part in it.

    num_trials:   that end, finished or pruned; failed ones do not count
    stale_after:  seconds without a sign of life after which a trial is taken for killed; on this machine a dead process is
                  enough
    """

    study: Any
    dimensions: Sequence[Dimension]
    num_trials: int
    stale_after: float
    folder: Path  # where this process runs its trials
    _said: dict[int, float] = field(default_factory=dict)  # when a trial last gave a sign of life

    def next_trial(self) -> Any | None:
        """Optuna's next trial, None where all are ended or being run; those that were killed are taken up first.

        Trial 0 is the default. A trial's `folder` is that of the one that it goes on with.
        """
        self.take_up_killed()
        if self._counted(None) >= self.num_trials:
            return None
        trial = self.study.ask()
        if self._counted(trial.number) >= self.num_trials:  # another process was faster
            trial.set_user_attr("reason", "one too many: another process had the last")
            self.study.tell(trial, state=_state("FAIL"))
            return None
        if "folder" not in trial.user_attrs:
            trial.set_user_attr("folder", str(self.folder / f"{trial.number:03}"))
        trial.set_user_attr("process", _this_process())
        self.alive(trial, now=True)
        return trial

    def alive(self, trial: Any, *, now: bool = False) -> None:
        """A sign of life, at most one each `BEAT` seconds."""
        if now or time.time() - self._said.get(trial.number, 0) > BEAT:
            self._said[trial.number] = time.time()
            trial.set_user_attr("alive", time.time())

    def finish(self, trial: Any, value: float | None, seconds: float) -> None:
        """Finished with a value, or pruned."""
        trial.set_user_attr("seconds", seconds)
        self.study.tell(trial, value, state=_state("PRUNED") if value is None else None)

    def fail(self, trial: Any, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=_state("FAIL"))

    def give_back(self, trial: Any) -> None:
        """Fail a trial whose run is to be gone on with, and put it first in the queue."""
        self._again(self.study.trials[trial.number])

    def take_up_killed(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(_state("RUNNING"),)):
            if self._is_dead(trial):
                log.warning("trial %d was killed and goes on", trial.number)
                self._again(trial)

    def others(self) -> int:
        """Trials that other processes are running."""
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

    def _again(self, trial: Any) -> None:
        """Of several processes that find a killed trial the one that may fail it puts it into the queue again."""
        try:
            self.study.tell(trial.number, state=_state("FAIL"))
        except ValueError:  # it has ended since, or another process was faster
            return
        attrs = {key: trial.user_attrs[key] for key in ("folder",) if key in trial.user_attrs}
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}  # killed before it knew all of them
        self.study.enqueue_trial(params, user_attrs={**attrs, "goes_on_with": trial.number})


def open_study(
    name: str, storage: str, dimensions: Sequence[Dimension], *, direction: Any, sampler: Any, pruner: Any
) -> Any:
    """The study of this name, or a new one whose first trial is the default.

    Raises ValueError for a storage that cannot be opened, or a study of another space or direction.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {each.key: _words(each) for each in dimensions}
    pruner = pruner or optuna.pruners.NopPruner()
    kept = _storage(storage)
    try:
        study = optuna.create_study(study_name=name, storage=kept, sampler=sampler, pruner=pruner, direction=direction)
        study.set_user_attr("space", space)
        study.enqueue_trial({each.key: each.default for each in dimensions})
    except optuna.exceptions.DuplicatedStudyError:
        sampler.reseed_rng()  # or two processes would propose the same
        study = optuna.load_study(study_name=name, storage=kept, sampler=sampler, pruner=pruner)
    stored = _space_of(study, space)
    if stored != space or study.direction.name.lower() != direction:
        raise ValueError(
            f"the study {name!r} in {storage} searches {stored} ({study.direction.name.lower()}), here are {space} "
            f"({direction}): take the same, or another tune.study"
        )
    return study


def _storage(url: str) -> Any:
    """Opened, with its tables; two processes that open a new one at once get in each other's way, so it is tried again."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    patient = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for tries_left in reversed(range(5)):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=patient)
        except (SQLAlchemyError, ImportError) as error:
            if not tries_left or isinstance(error, ImportError):
                raise ValueError(
                    f"tune.storage {url} cannot be opened ({str(error).splitlines()[0]}): take sqlite:///FILE or postgresql://..."
                ) from error
            time.sleep(0.5)


def _space_of(study: Any, space: dict[str, str]) -> dict[str, str]:
    """What the study was begun with; of one that another process is just beginning, ours, with the default as its first."""
    for _ in range(20):
        if "space" in study.user_attrs:
            return study.user_attrs["space"]
        time.sleep(0.1)
    study.set_user_attr("space", space)  # whoever began it was killed there
    return space


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
