"""A training that is killed and goes on ends as one that was never disturbed, to the bit."""

from __future__ import annotations

import io
import logging
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import fit, fork_server

STEPS = 14  # validations after 6 and 12, checkpoints after 4, 6, 8, 12 and 14
EVENTS = range(12, 45)  # of about 110 that a whole run has: where a life ends
LIVES = 8


class DyingAt:
    """Counts what a training does that may not be cut in two, and kills the process at one of these events."""

    def __init__(self, event: int) -> None:
        self.left = event

    def count(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def before(self, function: Callable) -> Callable:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.count()
            return function(*args, **kwargs)

        return wrapped

    def halfway(self, save: Callable) -> Callable:
        """Writing a checkpoint that dies with half of it on the disk."""

        def wrapped(content: Any, file: Any) -> None:
            whole = io.BytesIO()
            save(content, whole)
            data = whole.getvalue()
            file.write(data[: len(data) // 2])
            file.flush()
            self.count()
            file.write(data[len(data) // 2 :])

        return wrapped


def dying_in(step: int, on_train_batch_start: Callable) -> Callable:
    """Kills the process when the step begins, right behind a checkpoint of the one before."""

    def hook(self: Any, batch: Any, batch_idx: int) -> None:
        if self.micro_batch == step:
            os.kill(os.getpid(), signal.SIGKILL)
        on_train_batch_start(self, batch, batch_idx)

    return hook


def train(run_dir: Path, num_workers: int, dies_at: int | None, dies_in_step: int | None = None) -> None:
    """One process's life; begins or goes on."""
    warnings.simplefilter("ignore")
    logging.disable()
    if dies_at is not None:
        from samtrain.training.callbacks import BestCheckpoint, LastCheckpoint
        from samtrain.training.lit_sam import LitSam

        death = DyingAt(dies_at)
        torch.save = death.halfway(torch.save)
        for owner, name in [
            (os, "replace"),
            (os, "fsync"),
            (LitSam, "training_step"),
            (LitSam, "on_before_optimizer_step"),
            (LitSam, "validation_step"),
            (LitSam, "log_row"),
            (BestCheckpoint, "on_validation_end"),
            (LastCheckpoint, "on_validation_end"),
            (LastCheckpoint, "on_train_batch_end"),
        ]:
            setattr(owner, name, death.before(getattr(owner, name)))
    if dies_in_step is not None:
        from samtrain.training.lit_sam import LitSam

        hook = dying_in(dies_in_step, LitSam.on_train_batch_start)
        LitSam.on_train_batch_start = hook  # type: ignore[method-assign]
    fit(run_dir, max_steps=STEPS, num_workers=num_workers)


@pytest.fixture(scope="module")
def server() -> Any:
    return fork_server()


def start(server: Any, run_dir: Path, num_workers: int = 0, **death: int) -> Any:
    process = server.Process(target=train, args=(run_dir, num_workers, death.get("dies_at"), death.get("dies_in_step")))
    process.start()
    return process


def finish(process: Any) -> bool:
    """Whether the training came to its end; False if it was killed."""
    process.join(timeout=300)
    assert process.exitcode in (0, -signal.SIGKILL), f"exit code {process.exitcode}"
    return process.exitcode == 0


@pytest.fixture(scope="module")
def undisturbed(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    assert finish(start(server, run_dir))
    return run_dir


def assert_same_run(run_dir: Path, undisturbed: Path) -> None:
    assert (run_dir / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()
    for name in ("best.ckpt", "last.ckpt"):
        here, there = (torch.load(d / "checkpoints" / name, weights_only=True) for d in (run_dir, undisturbed))
        assert_same(here, there, name)
    assert not list(run_dir.rglob("*.partial")), "a half-written file was left behind"


def assert_same(here: Any, there: Any, where: str) -> None:
    """Equal to the bit, whatever nests."""
    assert type(here) is type(there), where
    if isinstance(here, torch.Tensor):
        assert torch.equal(here, there), where
    elif isinstance(here, dict):
        assert here.keys() == there.keys(), where
        for key in here:
            if key != "loops":  # counters of validation batches differ by how often it ran
                assert_same(here[key], there[key], f"{where}[{key!r}]")
    elif isinstance(here, (list, tuple)):
        assert len(here) == len(there), where
        for i, (a, b) in enumerate(zip(here, there, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert here == there, where


def test_every_step_stands_once(undisturbed: Path) -> None:
    lines = (undisturbed / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", *map(str, range(1, STEPS + 1))]
    validated = [i for i, line in enumerate(lines) if not line.endswith(",")]
    assert validated == [0, 6, 12, STEPS]


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_events(server: Any, undisturbed: Path, tmp_path: Path, seed: int) -> None:
    """Many deaths on the way: in steps, validations, and in the middle of every kind of writing."""
    chance = random.Random(seed)
    for _ in range(LIVES):
        if finish(start(server, tmp_path, dies_at=chance.choice(EVENTS))):
            break
    assert finish(start(server, tmp_path))
    assert_same_run(tmp_path, undisturbed)


def test_killed_right_behind_every_checkpoint(server: Any, undisturbed: Path, tmp_path: Path) -> None:
    """By number after 4 and 8 steps, after validations at 6 and 12: nothing of these steps may be missing."""
    for step in (4, 6, 8, 12):
        assert not finish(start(server, tmp_path, dies_in_step=step))
    assert finish(start(server, tmp_path))
    assert_same_run(tmp_path, undisturbed)


def test_killed_at_random_times_with_workers(server: Any, undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    killed = 0
    for _ in range(4):
        process = start(server, tmp_path, num_workers=2)
        time.sleep(0.3 + 0.7 * chance.random())
        process.kill()
        killed += not finish(process)
    assert killed, "the training ended before it could be killed"
    assert finish(start(server, tmp_path, num_workers=2))
    assert_same_run(tmp_path, undisturbed)
