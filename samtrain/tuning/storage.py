"""The database of a study: opened by any number of processes, which agree on what the study is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from samtrain.files import locked
from samtrain.tuning.space import Dimension, Value


def open_study(
    name: str,
    storage: str,
    dimensions: Sequence[Dimension],
    *,
    about: Mapping[str, str],
    direction: Literal["maximize", "minimize"],
    sampler: Any,
    pruner: Any,
) -> Any:
    """Returns the study of this name, or a new one; queues the default settings unless they have been run.

    `about` holds what else decides the values of trials, such as the metric. Raises ValueError if the storage cannot be
    opened, and if the study has another space, direction or `about`.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    about = {**about, "direction": direction, **{each.key: str(each) for each in dimensions}}
    pruner = pruner or optuna.pruners.NopPruner()
    default = {each.key: each.default for each in dimensions}
    with exclusive(lock_of(storage)):
        database = _open(storage)
        try:
            study = optuna.create_study(
                study_name=name, storage=database, sampler=sampler, pruner=pruner, direction=direction
            )
            _queue_default(study, default)
            study.set_user_attr("about", about)  # last, because other processes wait for it
        except optuna.exceptions.DuplicatedStudyError:
            sampler.reseed_rng()  # otherwise two processes would propose the same values
            study = optuna.load_study(study_name=name, storage=database, sampler=sampler, pruner=pruner)
        _check_same(name, _about(study) or about, about)
        _queue_default(study, default)
    return study


def lock_of(storage: str) -> Path | None:
    """Returns a lock file beside an SQLite file, None for a server; raises ValueError if the storage is not a URL."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
    except ArgumentError as error:
        raise ValueError(f"tune.storage is not a URL ({error}): give sqlite:///FILE or postgresql://...") from error
    return Path(f"{url.database}.lock") if url.drivername.startswith("sqlite") and url.database else None


def without_password(storage: str) -> str:
    """Returns the URL of a storage as the log may show it."""
    from sqlalchemy.engine import make_url

    return make_url(storage).render_as_string(hide_password=True)


def exclusive(lock: Path | None) -> AbstractContextManager[None]:
    """Lets one process and thread in at a time if there is a lock file; the system frees it when its holder ends."""
    return locked(lock) if lock else nullcontext()


@contextmanager
def explain_storage_errors() -> Iterator[None]:
    """Turns Optuna's own error for a database that fails into a ValueError that says what to do."""
    import optuna

    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        raise ValueError(
            f"tune.storage no longer answers ({error}): repair the database, then run the same command again to resume"
        ) from error


def _open(url: str) -> Any:
    """Opens the database and creates its tables; tries again, because processes on several machines may do so at once."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for tries_left in reversed(range(5)):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except (SQLAlchemyError, ImportError) as error:
            if not tries_left or isinstance(error, ImportError):
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"tune.storage {without_password(url)} cannot be opened ({reason}): give sqlite:///FILE or postgresql://..."
                ) from error
            time.sleep(0.5)


def _check_same(name: str, stored: Mapping[str, str], about: Mapping[str, str]) -> None:
    """Raises ValueError with the differences if the stored study is not the one that was asked for."""
    keys = sorted(key for key in stored.keys() | about.keys() if stored.get(key) != about.get(key))
    if keys:
        differences = "; ".join(f"{key}: {stored.get(key)} there, {about.get(key)} here" for key in keys)
        raise ValueError(
            f"the study {name!r} has other settings ({differences}): give the same settings, or choose another tune.study"
        )


def _about(study: Any) -> dict[str, str] | None:
    """Returns what the study was created with; None if the process that created it was killed before it could store this."""
    for _ in range(20):
        if "about" in study.user_attrs:
            return study.user_attrs["about"]
        time.sleep(0.1)
    return None


def _queue_default(study: Any, params: dict[str, Value]) -> None:
    """Queues the default settings unless they wait, run or have ended."""
    defaults = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("default")]
    if all(trial.state.name == "FAIL" for trial in defaults):
        study.enqueue_trial(params, user_attrs={"default": True})
