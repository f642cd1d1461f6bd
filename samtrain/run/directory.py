"""The directory of a run: one process works in it at a time, and only the same config resumes it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from samtrain.files import locked, write_text
from samtrain.plain import MISSING_KEY, differences
from samtrain.report.find_runs import BOOKKEEPING
from samtrain.run.clock import keep_time
from samtrain.run.environment import environment, read_environment, record_environment, resume_command, started_by

log = logging.getLogger(__name__)

Metrics = dict[str, float | None]  # None: the metric is not a finite number

# keys that may change when a run is resumed: they change neither data, nor order, nor weights. A number of the scale is
# compared under the key of the node that uses it, which is the one name to set it by. The files below data_dir are compared
# by their content (samtrain.run.inputs)
FREE = (
    "run_dir", "data_dir", "max_image_pixels", "scale", "loader.num_workers", "logger", "callbacks.progress",
    "zero_shot.num_workers", "tune.num_trials", "tune.num_workers", "tune.stale_after", "tune.seeds", "tune.compare_by",
    "annotate", "annotator.images", "annotator.masks", "annotator.hours",
)  # fmt: skip
# why some keys cannot change, and what to do instead
REASONS = {
    "trainer.max_steps": (
        "The number of steps decides the learning rate from the first step on. To train for longer, start a new run from these "
        "weights, with checkpoint={last} and another run_dir."
    ),
    **dict.fromkeys(
        ("loader.batch_size", "trainer.devices", "trainer.num_nodes"),
        "The random clicks are drawn for each micro-batch of each device, so a run keeps its loader.batch_size, "
        "trainer.devices and trainer.num_nodes to the end.",
    ),
}
LOG_NAME = "samtrain.log"
LOG_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"


@contextmanager
def open_run(run_dir: Path, config: dict[str, Any], overrides: list[str]) -> Iterator[Path]:
    """Locks `run_dir` for this process and writes the config, the overrides and the environment to `.hydra/`.

    From then on the log is written to `samtrain.log`, too. Raises ValueError if another process works in it, if it contains a
    run of another config, if it cannot be written to, or if several ranks were launched without one directory to share. A new
    run that ends by an error of the user before it has written a result leaves no directory behind.
    """
    _check_ranks(overrides)
    made = _make_directory(run_dir)
    if not is_first_rank():
        yield run_dir
        return
    with directory_lock(run_dir), ExitStack() as refused:
        stored = run_dir / ".hydra" / "config.yaml"
        if resumes := stored.is_file():
            _check_same(config, yaml.safe_load(stored.read_text()), run_dir)
        log_to_file(run_dir / LOG_NAME)
        if resumes:
            log.info("Resuming the run in %s.", run_dir)
        found = environment(overrides)
        stored.parent.mkdir(exist_ok=True)
        record_environment(run_dir, found, resumes=resumes)
        if not resumes:  # config.yaml comes last, because it marks the run as started
            write_text(stored.with_name("overrides.yaml"), yaml.safe_dump(overrides))
            write_text(stored, yaml.safe_dump(config, sort_keys=False))
            refused.push(partial(_remove_if_refused, run_dir, made))
        log.info("The command is %s, the run directory %s.", found["command"], run_dir)
        log.info("%s", ", ".join(f"{key} {value}" for key, value in found.items() if key != "command"))
        with keep_time(run_dir):
            yield run_dir


def _remove_if_refused(run_dir: Path, made: list[Path], kind: type[BaseException] | None, *_: Any) -> None:
    """Removes what `open_run` has written if an error of the user ended the run before it wrote anything else."""
    if kind is None or not issubclass(kind, (ValueError, OSError)) or {each.name for each in run_dir.iterdir()} - BOOKKEEPING:
        return
    shutil.rmtree(run_dir / ".hydra")
    for name in BOOKKEEPING - {".hydra"}:
        (run_dir / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty, because another run is in it
        for folder in made:
            folder.rmdir()


def log_to_file(path: Path) -> None:
    """Appends all further log lines of this process to a file, and no longer to the file of an earlier call."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _RunLog)]:
        root.removeHandler(handler)
        handler.close()
    ours = _RunLog(path, encoding="utf-8")
    ours.setFormatter(logging.Formatter(LOG_FORMAT))
    root.addHandler(ours)


class _RunLog(logging.FileHandler):
    """The log file of the run that this process works in; an error that ends the run is still written to it."""


def write_metrics(run_dir: Path, metrics: Metrics) -> None:
    """Writes the run's final numbers to metrics.json, complete or not at all."""
    write_text(run_dir / "metrics.json", json.dumps(metrics, indent=1, sort_keys=True) + "\n")


def is_first_rank() -> bool:
    """Returns whether this process writes files; other ranks only compute."""
    names = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")  # torchrun, Lightning's own launcher, srun
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def num_ranks() -> int:
    """Returns the number of processes that torchrun or srun has launched, this one included."""
    return max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Keeps other processes out of a directory; raises ValueError if one already works in it.

    The lock ends with its process, however that ends. Child processes do not inherit it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(directory / ".lock", wait=False))
        except BlockingIOError as error:
            raise ValueError(f"another process is working in {directory}: wait for it, or set another run_dir") from error
        yield


def _check_ranks(overrides: list[str]) -> None:
    """Raises ValueError for several ranks without `run_dir`, because each would name its directory by its own clock."""
    ranks = num_ranks()
    if ranks > 1 and not any(o.startswith(("run_dir=", "hydra.sweep.dir=")) for o in overrides):
        raise ValueError(f"{ranks} ranks were launched, each with its own run directory: set one for all with run_dir=...")


def _make_directory(run_dir: Path) -> list[Path]:
    """Makes the directory and returns the folders that did not exist, the innermost first."""
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the run directory {run_dir} cannot be made ({error.strerror}): set run_dir to a folder that you can write to"
        ) from error
    if not os.access(run_dir, os.W_OK | os.X_OK):
        raise ValueError(f"the run directory {run_dir} cannot be written to: set run_dir to a folder that you can write to")
    return made


def _check_same(config: dict[str, Any], stored: dict[str, Any], run_dir: Path) -> None:
    """Raises ValueError with a list of the differences that would change the run's results."""
    folder = read_environment(run_dir).get("folder", ".")
    found = [
        each
        for each in differences(config, stored)
        if not _is_free(each[0]) and not _is_same_path(*each[1:], folder=folder) and not _is_new_and_unset(*each[1:])
    ]
    if not found:
        return
    lines = [f"{run_dir} contains a run of another config:"]
    lines += [f"  {key}: {there} there, {here} now" for key, here, there in found]
    lines += ["It was started by", f"  {started_by(run_dir)}"]
    last = run_dir / "checkpoints" / "last.ckpt"
    lines += dict.fromkeys(REASONS[key].format(last=last) for key, *_ in found if key in REASONS)
    lines += [f"To resume it with its own settings, give {resume_command(run_dir)}, or set another run_dir for a new run"]
    raise ValueError("\n".join(lines))


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _is_new_and_unset(here: Any, there: Any) -> bool:
    """Returns whether a key is null here and did not exist yet when the run was started."""
    return here is None and there == MISSING_KEY


def _is_same_path(here: Any, there: Any, *, folder: str) -> bool:
    """Returns whether two texts are the same path, written in two ways; `folder` is where the run was started."""
    if not (isinstance(here, str) and isinstance(there, str)) or "://" in here:
        return False
    return os.path.realpath(here) == os.path.realpath(os.path.join(folder, there))
