"""Reads the files in a run's directory, independently of the modules that wrote them."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, float]


@dataclass(frozen=True)
class Training:
    """The rows of one training's `metrics.csv`; `label` is "" if the run is a single training."""

    label: str
    rows: list[Row]


@dataclass(frozen=True)
class Panel:
    """A sheet of masks; the caption names its training and step."""

    caption: str
    path: Path


@dataclass(frozen=True)
class RunFiles:
    """Everything that the report shows; files that do not exist (yet) are empty here."""

    run_dir: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    generated: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    zero_shot: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Returns the name of the experiment, or that of the directory."""
        return str(self.config.get("name") or self.run_dir.resolve().name)

    @property
    def commit(self) -> str:
        """Returns the commit and whether there were uncommitted changes, or "" if none was recorded."""
        commit = str(self.environment.get("commit") or "")
        return f"{commit or 'not recorded'} with uncommitted changes" if self.environment.get("uncommitted") else commit

    @property
    def hardware(self) -> str:
        """Returns CPU cores, GPUs and the host, or "" if nothing was recorded."""
        known = self.environment
        parts = [f"{known['cpus']} CPU cores" if known.get("cpus") else "", str(known.get("gpu") or "")]
        parts.append(f"host {known['host']}" if known.get("host") else "")
        return ", ".join(part for part in parts if part)

    @property
    def seconds(self) -> float:
        """Returns the time of the run, or of its rounds so far; 0 if no time was recorded."""
        return self.metrics.get("time/seconds") or sum(sum(line["wall"].values()) for line in self.ledger)


def read_run(run_dir: Path) -> RunFiles:
    """Reads a run; raises ValueError if there is no such directory or a file in it is damaged."""
    if not run_dir.is_dir():
        raise ValueError(f"there is no run directory {run_dir}: give the run_dir of a run")
    hydra = run_dir / ".hydra"
    folders = _training_folders(run_dir)
    config_text = _text(hydra / "config.yaml")
    return RunFiles(
        run_dir=run_dir,
        config=yaml.safe_load(config_text) or {},
        config_text=config_text,
        environment=_json(hydra / "environment.json"),
        metrics=_json(run_dir / "metrics.json"),
        ledger=[_parse(line, f"{run_dir}/ledger.jsonl") for line in _text(run_dir / "ledger.jsonl").splitlines()],
        trainings=[Training(label, rows) for label, folder in folders if (rows := _rows(folder / "metrics.csv"))],
        panels=[panel for label, folder in folders for panel in _panels(label, folder / "panels")],
        generated=_json(run_dir / "generated.json"),
        audit=_json(run_dir / "audit.json"),
        tune=_json(run_dir / "tune.json"),
        zero_shot=_json(run_dir / "zero_shot.json"),
    )


def _training_folders(run_dir: Path) -> list[tuple[str, Path]]:
    """Returns (label, folder) of each training in order; a run with rounds repeats all their rows in its own folder."""
    numbers = sorted(int(path.name) for path in run_dir.glob("rounds/*") if path.name.isdigit())
    rounds = [(f"round {n}", run_dir / "rounds" / str(n) / "fit") for n in numbers]
    return [("first model", run_dir / "pretrain"), *(rounds or [("", run_dir)])]


def _rows(path: Path) -> list[Row]:
    """Reads the numbers of a CSV, without empty cells and values that are not finite, such as an infinite loss."""
    with_header = csv.DictReader(_text(path).splitlines())
    return [
        {key: float(value) for key, value in row.items() if key and value and math.isfinite(float(value))}
        for row in with_header
    ]


def _panels(label: str, folder: Path) -> list[Panel]:
    """Returns the sheets in a folder, in order."""
    found = []
    for path in sorted(folder.glob("*.png")):
        step = re.fullmatch(r"step_(\d+)", path.stem)
        words = [label, f"step {int(step[1])}" if step else path.stem]
        found.append(Panel(", ".join(word for word in words if word), path))
    return found


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    return _parse(text, str(path)) if text else {}


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} cannot be parsed as JSON ({error}): restore the file, or run the command again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds a {type(values).__name__} instead of names with values: restore the file")
    return values


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
