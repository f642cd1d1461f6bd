"""Composes the config, runs its task in its run directory, and says in one message what went wrong."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtrain.refusals import explain

if TYPE_CHECKING:
    from omegaconf import DictConfig

TRACEBACK = "HYDRA_FULL_ERROR"  # Hydra's own variable: errors keep their traceback
WISH = "SAMTRAIN_FULL_ERROR"  # what the user had set it to; ours makes Hydra raise its errors instead of printing them
FAILURES = "SAMTRAIN_FAILED_JOBS"  # a file with a line for each job of a sweep that has failed
STOPPED = {signal.SIGTERM: 143, signal.SIGINT: 130}  # exit statuses as a shell reports them


def compose_and_run(conf: Path) -> None:
    """Composes the config with Hydra from the folder `conf` and `sys.argv`, then runs its task in its run directory."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from samtrain.tasks import register_resolvers

    register_resolvers()  # for --cfg job --resolve, which runs no task

    @hydra.main(version_base="1.3", config_path=str(conf), config_name="config")
    def job(config: DictConfig) -> None:
        _run_job(config)

    with tempfile.TemporaryDirectory() as folder, _variables(folder):
        try:
            job()
        except (HydraException, OmegaConfBaseException) as error:
            if os.environ[WISH]:
                raise
            sys.exit(explain(error, sys.argv[1:], conf))
        failures = Path(os.environ[FAILURES])
        if failures.is_file():
            lines = failures.read_text(encoding="utf-8").splitlines()
            sys.exit("\n".join([f"Jobs of the sweep that failed: {len(lines)}", *(f"  {line}" for line in lines)]))


@contextmanager
def _variables(folder: str) -> Iterator[None]:
    """Makes Hydra raise its errors, and names a file in the folder to the jobs of a sweep, in whichever process they run."""
    before = {name: os.environ.get(name) for name in (TRACEBACK, WISH, FAILURES)}
    os.environ.update({TRACEBACK: "1", WISH: before[TRACEBACK] or "", FAILURES: str(Path(folder) / "failures")})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _run_job(config: DictConfig) -> None:
    """Runs one job of Hydra's; in a sweep a job that fails is noted, and the others still run."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import read_write

    os.environ[TRACEBACK] = os.environ.get(WISH, "")
    settings = HydraConfig.get()
    is_sweep = settings.mode == RunMode.MULTIRUN
    try:
        with explained_errors(), stopped_by_signals() as working:
            run_dir = Path(str(settings.runtime.output_dir if is_sweep else config.run_dir))
            of_hydra: Any = settings.run
            with read_write(of_hydra):  # Lightning passes it to the processes of the other devices
                of_hydra.dir = str(run_dir)
            _run_task(config, run_dir, [*settings.overrides.task, *settings.overrides.hydra], working)
    except (SystemExit, Exception) as error:
        if not is_sweep or not os.path.isdir(os.path.dirname(os.environ.get(FAILURES, ""))) or _is_stop(error):
            raise
        if isinstance(error, Exception):
            logging.getLogger("samtrain").exception("The job ended with an error of the program.")
        job = " ".join(settings.overrides.task)
        with open(os.environ[FAILURES], "a", encoding="utf-8") as file:
            file.write(f"{job}: {_first_line(error)}\n")


def _run_task(config: DictConfig, run_dir: Path, overrides: list[str], working: list[Path]) -> None:
    """Runs the task of the config; `working` gets the run's directory as soon as there is something to resume."""
    from samtrain import tasks
    from samtrain.tuning.trials import end_with_parent

    # refuse what cannot run before anything is written
    tasks.check_task(config.task)
    values = tasks.resolve(config)
    keep_freed_memory()
    end_with_parent()

    # these import torch, which takes seconds
    from samtrain.run.closing import show_closing
    from samtrain.run.directory import is_first_rank, open_run
    from samtrain.terminal import console, log_through_console

    # all ranks would log the same lines, so only the first one does
    if not is_first_rank():
        logging.getLogger().setLevel(logging.WARNING)
    log_through_console()

    tasks.check(values)
    with open_run(run_dir.expanduser(), values, overrides) as directory:
        working.append(directory)
        metrics = tasks.run(values, directory)
    if is_first_rank():
        show_closing(console(), metrics or {}, directory)


# ---- errors


@contextmanager
def explained_errors() -> Iterator[None]:
    """Logs the errors that a user can cause as one message and exits with status 1; all others keep their traceback."""
    from hydra.errors import InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (ValueError, OSError, OmegaConfBaseException, InstantiationException) as error:
        if os.environ.get(TRACEBACK):
            raise
        message = _message(error)
        logging.getLogger("samtrain").error("%s", message)
        raise SystemExit(1) from ValueError(message)


def _message(error: Exception) -> str:
    """Returns what an error says to a user."""
    from hydra.errors import InstantiationException
    from omegaconf import MissingMandatoryValue

    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set and has no default: set {error.full_key}=..."
    # Hydra wraps what the constructor of a `_target_` raises; the message inside names the setting
    if isinstance(error, InstantiationException) and error.__cause__:
        return str(error.__cause__)
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{error.filename or 'a file'} cannot be written or read ({error.strerror}): give a folder that you may use, with "
            "run_dir=FOLDER for the run and data_dir=FOLDER for prepared images"
        )
    return str(error) or type(error).__name__


def _first_line(error: BaseException) -> str:
    """Returns what the list of failed jobs says about one of them."""
    cause = error.__cause__ if isinstance(error, SystemExit) and error.__cause__ else error
    text = str(cause).strip()
    return text.splitlines()[0] if text else type(cause).__name__


# ---- signals


@contextmanager
def stopped_by_signals() -> Iterator[list[Path]]:
    """Ends the process with status 143 after SIGTERM and 130 after Ctrl-C, and says how to resume the run.

    Yields a list for the directory of the run.
    """
    owner, working = os.getpid(), []  # type: ignore[var-annotated]

    def end(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a process that was forked: it ends as it would without this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise SystemExit(STOPPED[signal.SIGTERM])

    before = None
    with suppress(ValueError):  # not the main thread
        before = signal.signal(signal.SIGTERM, end)
    try:
        yield working
    except (KeyboardInterrupt, SystemExit) as error:
        number = _signal_of(error)
        if number is None:
            raise
        _tell_how_to_resume(number, working)
        raise SystemExit(STOPPED[number]) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _signal_of(error: BaseException) -> signal.Signals | None:
    """Returns the signal that ended the task; Lightning turns both into exits of other statuses."""
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return signal.SIGINT
    is_sigterm = type(error).__name__ == "SIGTERMException" or getattr(error, "code", None) == STOPPED[signal.SIGTERM]
    return signal.SIGTERM if is_sigterm else None


def _is_stop(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in STOPPED.values()


def _tell_how_to_resume(number: signal.Signals, working: list[Path]) -> None:
    from samtrain.run.directory import is_first_rank
    from samtrain.run.environment import resume_command

    if not is_first_rank():
        return
    what = "Ctrl-C" if number is signal.SIGINT else number.name
    how = f" To resume it: {resume_command(working[0])}" if working else ""
    logging.getLogger("samtrain").warning("The run was stopped by %s before its end.%s", what, how)


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory; by default it returns each large tensor to the system and faults the next one in again.

    This saves a fifth to a third of a laptop-scale training step (experiments/LOG.md, 2026-11-23). It does nothing without
    glibc. The numbers of the options are those of its malloc.h.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc accepts; larger tensors are still mapped
    mallopt(trim_threshold, 1 << 30)
    mallopt(top_pad, 64 << 20)


