"""The directory of a run: one process works in it at a time, and only the same config resumes it."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from samtrain.files import locked, write_text
from samtrain.run.clock import keep_time

log = logging.getLogger(__name__)

Metrics = dict[str, float | None]  # None: the metric is not a finite number

# keys that may change when a run is resumed: they change neither data, nor order, nor weights. A number of the scale is
# compared under the key of the node that uses it, which is the one name to set it by
FREE = (
    "run_dir", "scale", "loader.num_workers", "logger", "callbacks.progress", "zero_shot.num_workers",
    "tune.num_trials", "tune.num_workers", "tune.stale_after", "tune.seeds", "tune.compare_by",
)  # fmt: skip
PACKAGES = ("torch", "timm", "pytorch-lightning", "hydra-core", "webdataset", "numpy")


@contextmanager
def open_run(run_dir: Path, config: dict[str, Any], overrides: list[str]) -> Iterator[Path]:
    """Locks `run_dir` for this process and writes the config, the overrides and the environment to `.hydra/`.

    Raises ValueError if another process works in it, if it contains a run of another config, or if several ranks were
    launched without one directory to share.
    """
    _check_ranks(overrides)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not is_first_rank():
        yield run_dir
        return
    with directory_lock(run_dir):
        stored = run_dir / ".hydra" / "config.yaml"
        if resumes := stored.is_file():
            _check_same(config, yaml.safe_load(stored.read_text()), run_dir)
            log.info("Resuming the run in %s.", run_dir)
        environment = _environment(overrides)
        stored.parent.mkdir(exist_ok=True)
        write_text(stored.with_name("environment.json"), json.dumps(environment, indent=1) + "\n")
        if not resumes:  # config.yaml comes last, because it marks the run as started
            write_text(stored.with_name("overrides.yaml"), yaml.safe_dump(overrides))
            write_text(stored, yaml.safe_dump(config, sort_keys=False))
        log.info("The command is %s, the run directory %s.", environment["command"], run_dir)
        log.info("%s", ", ".join(f"{key} {value}" for key, value in environment.items() if key != "command"))
        with keep_time(run_dir):
            yield run_dir


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
    if ranks > 1 and not any(o.startswith(("run_dir=", "hydra.run.dir=", "hydra.sweep.dir=")) for o in overrides):
        raise ValueError(f"{ranks} ranks were launched, each with its own run directory: set one for all with run_dir=...")


def _check_same(config: dict[str, Any], stored: dict[str, Any], run_dir: Path) -> None:
    """Raises ValueError with a list of the differences that would change the run's results."""
    differences = [
        f"  {key}: {there} there, {here} now" for key, here, there in config_differences(config, stored) if not _is_free(key)
    ]
    if differences:
        command = json.loads((run_dir / ".hydra" / "environment.json").read_text())["command"]
        raise ValueError(
            f"{run_dir} contains a run of another config:\n" + "\n".join(differences) + f"\nIt was started by\n  {command}\n"
            "Give the same settings to resume it, or set another run_dir"
        )


def config_differences(config: dict[str, Any], stored: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (key, value in `config`, value in `stored`) for each value that differs; keys are dotted and sorted."""
    here, there, missing = _flat(config), _flat(stored), "(not set)"
    pairs = [(key, here.get(key, missing), there.get(key, missing)) for key in sorted(here.keys() | there.keys())]
    return [each for each in pairs if each[1] != each[2]]


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b.0": value} for nested dicts and lists."""
    if not isinstance(values, (dict, list)) or not values:
        return {prefix: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {k: v for key, value in items for k, v in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()}


def _environment(overrides: list[str]) -> dict[str, Any]:
    """Returns what else decides a run's results: command, commit, machine and package versions."""
    typed = overrides if "SUBMITIT_EXECUTOR" in os.environ else sys.argv[1:]  # submitit's processes have other arguments
    return {
        "command": " ".join(["python -m samtrain", *typed]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "gpu": _gpus(),
        "host": platform.node(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def _gpus() -> str | None:
    """Returns the GPUs, such as "8 x NVIDIA H100", or None if there are none."""
    count = torch.cuda.device_count()
    return f"{count} x {torch.cuda.get_device_name(0)}" if count else None


def _git(*arguments: str) -> str | None:
    """Returns git's answer about the checkout that samtrain runs from; None for an installed wheel."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
