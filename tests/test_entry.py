"""The way from the command line to a task and back: exit statuses, sweeps, errors, signals; with a task that is pretended."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric.strategies.launchers.subprocess_script import _hydra_subprocess_cmd
from pytorch_lightning.utilities.exceptions import SIGTERMException

from samtrain import entry, tasks
from samtrain.__main__ import conf_dir
from samtrain.arguments import understood

Task = Callable[[dict[str, Any], Path], None]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Hydra configures the log of the process, and the entry sets variables."""
    root, variables = logging.getLogger(), dict(os.environ)
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    os.environ.clear()
    os.environ.update(variables)


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """A process in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command with these arguments in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("samtrain.tuning.trials.end_with_parent", lambda: None)

    def run(task: Task, *arguments: str) -> None:
        monkeypatch.setattr(tasks, "run", task)
        monkeypatch.setattr(sys, "argv", ["samtrain", *arguments, "task=preview"])
        entry.compose_and_run(conf_dir())

    return run


def write(config: dict[str, Any], run_dir: Path) -> None:
    (run_dir / "done").write_text(str(config["seed"]))


def fail_for_seed_1(config: dict[str, Any], run_dir: Path) -> None:
    if config["seed"] == 1:
        raise ValueError("the checkpoint is cut short: download it again\nand more")
    if config["seed"] == 2:
        raise RuntimeError("a mistake of the program")
    write(config, run_dir)


def test_a_failing_job_does_not_end_a_sweep(run: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(fail_for_seed_1, "-m", "seed=0,1,2,-1,3", "run_dir=sweep")
    assert (tmp_path / "sweep" / "0" / "done").read_text() == "0" and (tmp_path / "sweep" / "4" / "done").read_text() == "3"
    lines = str(ended.value.code).splitlines()
    assert lines[0] == "Jobs of the sweep that failed: 3"
    assert lines[1].strip() == "seed=1 run_dir=sweep task=preview: the checkpoint is cut short: download it again"
    assert lines[2].endswith("a mistake of the program") and lines[3].endswith("seed is -1: give 0 or more")


def test_a_sweep_without_failures_ends_well(run: Callable[..., None], tmp_path: Path) -> None:
    run(write, "-m", "seed=0,1", "run_dir=sweep")
    assert len(list(tmp_path.glob("sweep/*/done"))) == 2


def stop_by(number: signal.Signals) -> Task:
    def task(config: dict[str, Any], run_dir: Path) -> None:
        signal.raise_signal(number)

    return task


@pytest.mark.parametrize(("number", "status", "words"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_signal_ends_with_its_status_and_says_how_to_resume(
    run: Callable[..., None], tmp_path: Path, number: signal.Signals, status: int, words: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run(stop_by(number), "run_dir=here")
    assert ended.value.code == status and signal.getsignal(signal.SIGTERM) is before
    said = (tmp_path / "here" / "samtrain.log").read_text()
    assert f"stopped by {words} before its end. To resume it: python -m samtrain run_dir=here" in said


def test_a_signal_ends_a_sweep(run: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(stop_by(signal.SIGTERM), "-m", "seed=0,1", "run_dir=sweep")
    assert ended.value.code == 143 and not (tmp_path / "sweep" / "1").exists()


def test_what_lightning_makes_of_signals_is_understood(run: Callable[..., None]) -> None:
    """Its exception for SIGTERM has the status 0, and Ctrl-C becomes the status 1."""

    def sigterm(config: dict[str, Any], run_dir: Path) -> None:
        raise SIGTERMException

    def interrupt(config: dict[str, Any], run_dir: Path) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    for task, status in ((sigterm, 143), (interrupt, 130)):
        with pytest.raises(SystemExit) as ended:
            run(task, "run_dir=here")
        assert ended.value.code == status


def test_a_setting_that_does_not_exist_leaves_nothing(run: Callable[..., None], tmp_path: Path) -> None:
    for argument in ("trainer.max_step=3", "+trainer.max_step=3", "seed=-1"):
        with pytest.raises(SystemExit) as ended:
            run(write, argument)
        assert ended.value.code not in (0, None)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_read_only_names_the_settings() -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "data/shards")
    assert entry._message(error).startswith("data/shards cannot be written or read (Permission denied)")
    assert "run_dir=FOLDER" in entry._message(error) and "data_dir=FOLDER" in entry._message(error)


def test_other_processes_of_a_training_are_told_the_run_directory(run: Callable[..., None], tmp_path: Path) -> None:
    """Lightning starts them with the same arguments and this directory; a directory named by the clock would differ."""
    told = []

    def task(config: dict[str, Any], run_dir: Path) -> None:
        command, _ = _hydra_subprocess_cmd(1)
        told.append((run_dir, understood([each for each in command if "=" in each])))

    run(task, "run_dir='runs/a=${now:%S-%f}'")
    run_dir, arguments = told[0]
    assert f'run_dir="{run_dir}"' in arguments and run_dir.parts[0] == "runs" and "now" not in str(run_dir)
