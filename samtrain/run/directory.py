"""A run's directory: held by one process, begun with what the run was told, gone on with only by the same config."""

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

Metrics = dict[str, float | None]  # None: no number came out

# what may differ between the parts of one run: it changes neither data, nor order, nor weights. A number of the scale is
# compared under the key of the node that uses it, which is the one name to set it by
FREE = (
    "run_dir", "scale", "loader.num_workers", "logger", "callbacks.progress", "zero_shot.num_workers",
    "tune.num_trials", "tune.num_workers", "tune.stale_after", "tune.seeds", "tune.compare_by",
)  # fmt: skip
PACKAGES = ("torch", "timm", "pytorch-lightning", "hydra-core", "webdataset", "numpy")


@contextmanager
def open_run(run_dir: Path, config: dict[str, Any], overrides: list[str]) -> Iterator[Path]:
    """Hold `run_dir` for this process and write what the run was told to `.hydra/`.

    Raises ValueError if another process holds it, if it holds a run of another config, or if several ranks were
    launched without one directory to share.
    """
    _check_ranks(overrides)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not is_first_rank():
        yield run_dir
        return
    with held(run_dir):
        stored = run_dir / ".hydra" / "config.yaml"
        if goes_on := stored.is_file():
            _check_same(config, yaml.safe_load(stored.read_text()), run_dir)
            log.info("going on in %s", run_dir)
        environment = _environment(overrides)
        stored.parent.mkdir(exist_ok=True)
        write_text(stored.with_name("environment.json"), json.dumps(environment, indent=1) + "\n")
        if not goes_on:  # last, for it is what says that a run has begun here
            write_text(stored.with_name("overrides.yaml"), yaml.safe_dump(overrides))
            write_text(stored, yaml.safe_dump(config, sort_keys=False))
        log.info("%s in %s", environment["command"], run_dir)
        log.info("%s", ", ".join(f"{key} {value}" for key, value in environment.items() if key != "command"))
        with keep_time(run_dir):
            yield run_dir


def write_metrics(run_dir: Path, metrics: Metrics) -> None:
    """The run's final numbers, whole or not at all."""
    write_text(run_dir / "metrics.json", json.dumps(metrics, indent=1, sort_keys=True) + "\n")


def is_first_rank() -> bool:
    """True in the process that writes: the others of a training on several devices only compute."""
    names = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")  # torchrun, Lightning's own launcher, srun
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def num_ranks() -> int:
    """How many processes torchrun or srun has launched beside each other, this one included."""
    return max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep other processes out of a directory; ValueError where one is in it.

    The lock ends with its process, however that ends, and workers that outlive it have not inherited it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(directory / ".lock", wait=False))
        except BlockingIOError as error:
            raise ValueError(f"another process is working in {directory}: wait for it, or take another run_dir") from error
        yield


def _check_ranks(overrides: list[str]) -> None:
    """Each rank names its own directory by its own clock, so several ranks have to be told one."""
    ranks = num_ranks()
    if ranks > 1 and not any(o.startswith(("run_dir=", "hydra.run.dir=", "hydra.sweep.dir=")) for o in overrides):
        raise ValueError(f"{ranks} ranks were launched and would each make a run directory: give them one, run_dir=...")


def _check_same(config: dict[str, Any], stored: dict[str, Any], run_dir: Path) -> None:
    """Raises ValueError with the list of differences that would make the run another one."""
    differences = [
        f"  {key}: {there} there, {here} now" for key, here, there in differing(config, stored) if not _is_free(key)
    ]
    if differences:
        command = json.loads((run_dir / ".hydra" / "environment.json").read_text())["command"]
        raise ValueError(
            f"{run_dir} holds a run of another config:\n" + "\n".join(differences) + f"\nIt was begun by\n  {command}\n"
            "Give the same settings and it goes on, or another run_dir"
        )


def differing(config: dict[str, Any], stored: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value in `config`, value in `stored`) of what is not the same, keys dotted and sorted."""
    here, there, missing = _flat(config), _flat(stored), "(not set)"
    pairs = [(key, here.get(key, missing), there.get(key, missing)) for key in sorted(here.keys() | there.keys())]
    return [each for each in pairs if each[1] != each[2]]


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"a.b.0": value} for nested dicts and lists."""
    if not isinstance(values, (dict, list)) or not values:
        return {prefix: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {k: v for key, value in items for k, v in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()}


def _environment(overrides: list[str]) -> dict[str, Any]:
    """What decides a run beside its config."""
    typed = overrides if "SUBMITIT_EXECUTOR" in os.environ else sys.argv[1:]  # submitit's processes have arguments of its own
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
    """"8 x NVIDIA H100", or None without one."""
    count = torch.cuda.device_count()
    return f"{count} x {torch.cuda.get_device_name(0)}" if count else None


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that samtrain runs from; None for an installed wheel or without git."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
