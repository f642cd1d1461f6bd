"""What a run was started by: `.hydra/environment.json` keeps the first opening, and each later one is appended."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from samtrain.files import write_text
from samtrain.version import commit, git, version

PACKAGES = ("torch", "timm", "pytorch-lightning", "hydra-core", "webdataset", "numpy")
RESUMED = "resumed"  # the key of the later openings


def environment(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns what else decides a run's results: command, folder, commit, machine and package versions."""
    typed = overrides if "SUBMITIT_EXECUTOR" in os.environ else sys.argv[1:]  # submitit's processes have other arguments
    return {
        "command": command_line(*typed),
        "folder": os.getcwd(),
        "samtrain": version(),
        "commit": commit(),
        "uncommitted": bool(git("status", "--porcelain")),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "gpu": _gpus(),
        "host": platform.node(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def command_line(*arguments: str) -> str:
    """Returns `python -m samtrain ...` so that it can be pasted into a shell."""
    return shlex.join(["python", "-m", "samtrain", *arguments])


def resume_command(run_dir: Path) -> str:
    """Returns the command that resumes a run."""
    return command_line(f"run_dir={run_dir}")


def read_environment(run_dir: Path) -> dict[str, Any]:
    """Returns what the run was started by; empty if nothing was recorded."""
    path = _path(run_dir)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def started_by(run_dir: Path) -> str:
    """Returns the command that started the run, for messages."""
    return read_environment(run_dir).get("command", "a command that was not recorded")


def record_environment(run_dir: Path, found: dict[str, Any], *, resumes: bool) -> None:
    """Writes what starts the run; a process that resumes it is appended to the list `resumed` and leaves the rest as it is."""
    if resumes and (first := read_environment(run_dir)):
        found = {**first, RESUMED: [*first.get(RESUMED, []), found]}
    write_text(_path(run_dir), json.dumps(found, indent=1) + "\n")


def _path(run_dir: Path) -> Path:
    return run_dir / ".hydra" / "environment.json"


def _gpus() -> str | None:
    """Returns the GPUs, such as "8 x NVIDIA H100", or None if there are none."""
    count = torch.cuda.device_count()
    return f"{count} x {torch.cuda.get_device_name(0)}" if count else None
