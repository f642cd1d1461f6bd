"""A trial is a command of its own: begun, followed by the files that it writes, ended early where it is not worth its time."""

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

LOOK_EVERY = 1.0  # seconds
PARENT = "SAMTRAIN_PARENT"  # the process without which a command has no reason to go on


class TrialFailed(Exception):
    """A run that ended with an error, or without the number that was asked for."""


class TrialKilled(TrialFailed):
    """A run that a signal ended: by a scheduler, by somebody, for want of memory."""


class Stopped(Exception):
    """The sweep was interrupted: the trial is to be gone on with another time."""


@dataclass(frozen=True)
class Command:
    """The command line of a run but for `run_dir`, which each is given."""

    overrides: tuple[str, ...]

    def with_values(self, values: Mapping[str, Value], extra: Sequence[str] = ()) -> Command:
        given = [override(key, value) for key, value in values.items()]
        return Command((*self.overrides, *extra, *given))

    def __str__(self) -> str:
        return shlex.join(["python", "-m", "samtrain", *self.overrides])

    def start(self, run_dir: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """In a session of its own, so that all its processes can be ended at once; what it says goes to `output.log`."""
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
    """End where the sweep that began this run is gone (`SAMTRAIN_PARENT`): nobody would read what it finds."""
    parent = os.environ.pop(PARENT, None)  # not for what this run begins
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(1)
        if os.getpgrp() == os.getpid():  # with what it has begun itself; as killed, what is half done is gone on with
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def shares(workers: int, devices: int, gpus: int) -> list[dict[str, str]]:
    """The environment of each of several runs at once: its GPUs, in turn, or its part of the cores.

    devices: that a run takes. gpus: that are there. What a user has set for the cores stays. ValueError where runs of several
    devices would have to share them.
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
            f"tune.num_workers is {workers} and each run takes {devices} GPUs (trainer.devices), of which there are "
            f"{len(visible)}: set tune.num_workers={max(1, len(visible) // devices)}"
        )
    chosen = [[visible[(i * devices + k) % len(visible)] for k in range(devices)] for i in range(workers)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(each)} for each in chosen]


def run_to_its_end(
    command: Command,
    run_dir: Path,
    metric: str,
    env: Mapping[str, str],
    *,
    report: Callable[[int, float], bool],
    alive: Callable[[], None],
    stopped: Callable[[], bool],
) -> dict[str, float] | None:
    """The run's metrics.json; None where `report(i, value)` of the i-th measurement said that it is not worth going on.

    `alive` is called each `LOOK_EVERY` seconds. Raises TrialFailed, and Stopped once `stopped()` is true; the process is gone
    then, and its directory goes on when it is given the same command.
    """
    process, reported = command.start(run_dir, env), 0
    try:
        while True:
            ended = process.poll() is not None
            for value in measurements(run_dir, metric)[reported:]:
                if report(reported, value) and not ended:
                    return None
                reported += 1
            if ended:
                return _result(process.returncode, run_dir, metric)
            if stopped():
                raise Stopped
            alive()
            time.sleep(LOOK_EVERY)
    finally:
        end(process)


def measurements(run_dir: Path, metric: str) -> list[float]:
    """What a run has measured so far, in its order: by round where it has rounds, else by validation."""
    ledger = run_dir / "ledger.jsonl"
    if ledger.is_file():
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        found = [line["metrics_after" if line["promoted"] else "metrics_before"].get(metric) for line in lines[1:]]
    elif (run_dir / "metrics.csv").is_file() and not (run_dir / "rounds").is_dir():
        text = (run_dir / "metrics.csv").read_text()
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # without a line that is being written
        found = [float(row[metric]) for row in rows if row.get(metric)]
    else:
        found = []
    return [value for value in found if value is not None and math.isfinite(value)]


def end(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a process and all that it began, those too that have not heard the first signal."""
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


def _result(status: int, run_dir: Path, metric: str) -> dict[str, float]:
    log = run_dir / "output.log"
    if status:
        last = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        if status < 0:
            raise TrialKilled(f"ended by {signal.Signals(-status).name}, see {log}: {last}")
        raise TrialFailed(f"exit status {status}, see {log}: {last}")
    metrics: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    value = metrics.get(metric)
    if value is None or not math.isfinite(value):
        raise TrialFailed(f"{run_dir / 'metrics.json'} has no {metric} (tune.metric); it has {', '.join(sorted(metrics))}")
    return {name: number for name, number in metrics.items() if number is not None}


def _quoted(path: Path) -> str:
    """A path that Hydra takes as it is."""
    return "'" + str(path).replace("'", "\\'") + "'"
