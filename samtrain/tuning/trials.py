"""Runs a trial as a separate command, follows the files that it writes, and ends it early if it is to be pruned."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtrain.tuning.space import Value, override

POLL_SECONDS = 1.0
PARENT = "SAMTRAIN_PARENT"  # the process id of the sweep; a trial ends when this process has ended


class TrialFailed(Exception):
    """The run ended with an error, or without the metric that was asked for."""


class TrialKilled(TrialFailed):
    """A signal ended the run: from a scheduler, a person, or the system when memory ran out."""


class Stopped(Exception):
    """The sweep was interrupted, and the trial is to be resumed later."""


@dataclass(frozen=True)
class Command:
    """The command line of a run without `run_dir`, which is different for each trial."""

    overrides: tuple[str, ...]

    def with_values(self, values: Mapping[str, Value], extra: Sequence[str] = ()) -> Command:
        """Returns this command with further overrides and with values for the searched settings."""
        given = [override(key, value) for key, value in values.items()]
        return Command((*self.overrides, *extra, *given))

    def __str__(self) -> str:
        return shlex.join(["python", "-m", "samtrain", *self.overrides])

    def start(self, run_dir: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Starts the run with its output in `output.log`, in a session of its own, so that all its processes end together."""
        run_dir.mkdir(parents=True, exist_ok=True)
        arguments = [*self.overrides, f"run_dir={_quoted(run_dir)}", "callbacks.progress=false"]
        with open(run_dir / "output.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "samtrain", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **env, PARENT: str(os.getpid())},
            )


def end_with_parent() -> None:
    """Ends this run when the sweep that started it has ended (`SAMTRAIN_PARENT`), because nobody would read its result."""
    parent = os.environ.pop(PARENT, None)  # not for the processes that this run starts
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(1)
        if os.getpgrp() == os.getpid():  # end its own processes, too; a resumed run continues from what is on disk
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker_environments(workers: int, devices: int, gpus: int) -> list[dict[str, str]]:
    """Returns the environment of each of several runs at a time: its GPUs, in turn, or its share of the cores.

    `devices` is the number of GPUs per run, `gpus` how many there are. A user's own OMP_NUM_THREADS stays. Raises ValueError
    if runs on several GPUs would have to share them.
    """
    if workers == 1:
        return [{}]
    if not gpus:
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
        return [{"OMP_NUM_THREADS": threads}] * workers
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else [str(i) for i in range(gpus)]
    if devices > 1 and workers * devices > len(visible):
        raise ValueError(
            f"tune.num_workers is {workers} and each run uses {devices} GPUs (trainer.devices), but there are only "
            f"{len(visible)}: set tune.num_workers={max(1, len(visible) // devices)}"
        )
    chosen = [[visible[(i * devices + k) % len(visible)] for k in range(devices)] for i in range(workers)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(each)} for each in chosen]


def run_trial(
    command: Command,
    run_dir: Path,
    metric: str,
    env: Mapping[str, str],
    *,
    stopped: Callable[[], bool],
    should_prune: Callable[[int, float], bool] = lambda number, value: False,
    heartbeat: Callable[[], None] = lambda: None,
) -> dict[str, float] | None:
    """Runs the command and returns its metrics.json, or None if `should_prune(i, value)` of the i-th measurement ended it.

    `heartbeat` is called every `POLL_SECONDS`. Raises TrialFailed, and Stopped once `stopped()` is true. The process has
    ended by then; the same command resumes its directory.
    """
    process, reported = command.start(run_dir, env), 0
    try:
        while True:
            ended = process.poll() is not None
            for value in measurements(run_dir, metric)[reported:]:
                if should_prune(reported, value) and not ended:
                    return None
                reported += 1
            if ended:
                return result_of(process.returncode, run_dir, metric)
            if stopped():
                raise Stopped
            heartbeat()
            time.sleep(POLL_SECONDS)
    finally:
        terminate(process)


def measurements(run_dir: Path, metric: str) -> list[float]:
    """Returns what a run has measured so far, in order: after each round if it has rounds, else after each validation."""
    ledger = run_dir / "ledger.jsonl"
    if ledger.is_file():
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        found = [line["metrics_after" if line["promoted"] else "metrics_before"].get(metric) for line in lines[1:]]
    elif (run_dir / "metrics.csv").is_file() and not (run_dir / "rounds").is_dir():
        text = (run_dir / "metrics.csv").read_text()
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # leaves out a line that is still being written
        found = [float(row[metric]) for row in rows if row.get(metric)]
    else:
        found = []
    return [value for value in found if value is not None and math.isfinite(value)]


def terminate(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """Ends a process and all that it started, also those that ignore the first signal."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def result_of(status: int, run_dir: Path, metric: str) -> dict[str, float]:
    """Returns the metrics of a run that has ended; raises TrialFailed if it failed or has no such metric."""
    log = run_dir / "output.log"
    if status:
        last = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        if status < 0 or status in (128 + signal.SIGTERM, 128 + signal.SIGINT):  # the latter: samtrain's own exit statuses
            name = signal.Signals(-status if status < 0 else status - 128).name
            raise TrialKilled(f"it was ended by {name}, see {log}: {last}")
        raise TrialFailed(f"it ended with exit status {status}, see {log}: {last}")
    metrics: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    value = metrics.get(metric)
    if value is None or not math.isfinite(value):
        raise TrialFailed(
            f"{run_dir / 'metrics.json'} has no {metric} (tune.metric, tune.compare_by); it has {', '.join(sorted(metrics))}"
        )
    return {name: number for name, number in metrics.items() if number is not None}


def _quoted(path: Path) -> str:
    """Returns a path in quotes, so that Hydra takes it as it is."""
    return "'" + str(path).replace("'", "\\'") + "'"
