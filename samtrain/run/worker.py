"""Runs a training of the rounds on several devices: as a separate command, one process per device."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from samtrain.data.datasets import Source
from samtrain.data_engine.stages import FitRequest, FitResult
from samtrain.files import write_text
from samtrain.run.build import loggers_of
from samtrain.run.directory import directory_lock, is_first_rank
from samtrain.run.training import train

REQUEST, RESULT = "request.json", "result.json"


def train_apart(run_dir: Path, request: FitRequest, launcher: str | None) -> FitResult:
    """Runs `<launcher> python -m samtrain.run.worker <run_dir> <directory>` and returns the result that it writes.

    Without a launcher Lightning starts the other processes of this machine itself. Raises ValueError if the training fails.
    """
    request.directory.mkdir(parents=True, exist_ok=True)
    (request.directory / RESULT).unlink(missing_ok=True)
    write_text(request.directory / REQUEST, json.dumps(asdict(request), default=str, indent=1))
    command = [sys.executable, "-m", "samtrain.run.worker", str(run_dir), str(request.directory)]
    ended = subprocess.run([*shlex.split(launcher or ""), *command], check=False)
    if ended.returncode:
        raise ValueError(
            f"the training in {request.directory} ended with exit status {ended.returncode}: correct the error that it "
            "printed above and give the same command again, which resumes from its last checkpoint"
        )
    result = json.loads((request.directory / RESULT).read_text())
    return FitResult(**{**result, "checkpoint": Path(result["checkpoint"]), "last": Path(result["last"])})


def read_request(directory: Path) -> FitRequest:
    """Returns the request that `train_apart` wrote."""
    values: dict[str, Any] = json.loads((directory / REQUEST).read_text())
    values["directory"] = Path(values["directory"])
    values["init"] = Path(values["init"]) if values["init"] else None
    values["train"] = [Source(**source) for source in values["train"]]
    return FitRequest(**values)


def main(run_dir: str, directory: str) -> None:
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")
    config = yaml.safe_load((Path(run_dir) / ".hydra" / "config.yaml").read_text())
    request = read_request(Path(directory))
    # a worker that outlived the process of the rounds may still train here
    with directory_lock(request.directory) if is_first_rank() else nullcontext():
        result = train(config, request, loggers_of(config, request.directory, part_of=Path(run_dir)))
        if is_first_rank():
            write_text(request.directory / RESULT, json.dumps(asdict(result), default=str))


if __name__ == "__main__":
    # Lightning's own exit after SIGTERM has the status 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(str(error))
