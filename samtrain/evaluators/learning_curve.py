"""What a run learned: clicks on its checkpoints, beside the masks, annotation time and device hours that went into them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from samtrain.evaluators.config import ZeroShotConfig
from samtrain.evaluators.evaluator import Part
from samtrain.evaluators.points import Points


@dataclass(frozen=True)
class Milestone:
    """A checkpoint of a run, and what was spent to get it.

    masks:              annotated so far (data-engine runs)
    masks_seen:         objects in the loss, counted each time they were seen, over all trainings up to here
    images_seen:        images, counted in the same way
    annotator_seconds:  time for annotation so far, modelled or of people (data-engine runs)
    device_hours:       time for training and validation, times the devices of the run. For a round that was killed it is the
                        time of its last process; the detector is not included. For a single training it is the time of the
                        whole run in proportion to the steps. None if the run has no record of its time
    """

    name: str
    checkpoint: str
    masks: float | None
    masks_seen: float
    images_seen: float
    annotator_seconds: float | None
    device_hours: float | None


class LearningCurve(Points):
    """Measures `Points` at every milestone of the run `zero_shot.run`."""

    def __init__(self, config: ZeroShotConfig | None = None, **settings: Any) -> None:
        super().__init__(config, **settings)
        if self.config.run is None or not Path(self.config.run).is_dir():
            raise ValueError(f"zero_shot.run is {self.config.run!r}: give the directory of a run that has trained a model")
        self.run_dir = Path(self.config.run)

    @cached_property
    def milestones(self) -> list[Milestone]:
        return read_milestones(self.run_dir)

    def parts(self, sets: Mapping[str, list[str]], checkpoint: str | None) -> list[Part]:
        """Returns every set with the checkpoint of every milestone."""
        steps = self.milestones
        return [Part(f"{name}/{step.name}", sources, step.checkpoint) for name, sources in sets.items() for step in steps]


def read_milestones(run_dir: Path) -> list[Milestone]:
    """Returns the first model and that of each round of a data-engine run, or the best and the last of a single training.

    Raises ValueError for a directory that holds neither, and if a checkpoint is missing.
    """
    devices = _devices(run_dir)
    if (run_dir / "ledger.jsonl").is_file():
        lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
        return _of_rounds(run_dir, lines, devices)
    found = [path for name in ("best", "last") if (path := run_dir / "checkpoints" / f"{name}.ckpt").is_file()]
    if not found:
        raise ValueError(f"{run_dir} has neither ledger.jsonl nor checkpoints/: give the directory of a run (zero_shot.run)")
    counts = {path: _counts(path) for path in found}
    hours = _hours(run_dir, devices)
    last = max(counts.values(), key=lambda each: each["global_step"])["global_step"] or 1
    return [
        Milestone(path.stem, str(path), None, each["masks_seen"], each["images_seen"], None, _share(hours, each, last))
        for path, each in sorted(counts.items(), key=lambda item: item[1]["global_step"])
    ]


def _of_rounds(run_dir: Path, lines: list[dict[str, Any]], devices: int) -> list[Milestone]:
    """Returns the milestones of a data-engine run, one per line of its ledger."""
    pretrained = run_dir / "pretrain" / "fit.json"
    hours = json.loads(pretrained.read_text())["wall"] * devices / 3600 if pretrained.is_file() else 0.0
    result, masks_seen, seconds = [], 0.0, 0.0
    for line in lines:
        checkpoint = run_dir / line["checkpoint"]
        if not checkpoint.is_file():
            raise ValueError(
                f"{checkpoint} is missing, and {run_dir}/ledger.jsonl names it: restore it, or give another run (zero_shot.run)"
            )
        drawn = line["masks"] - line["masks_automatic"]
        seconds += (line["seconds_per_mask"] or 0.0) * drawn
        hours += line["wall"].get("fit", 0.0) * devices / 3600
        last = checkpoint.with_name("last.ckpt")
        counts = _counts(last if last.is_file() else checkpoint)
        masks_seen += counts["masks_seen"]
        name = "first model" if line["round"] == 0 else f"round {line['round']}"
        result.append(
            Milestone(name, str(checkpoint), line["masks_total"], masks_seen, counts["images_seen"], seconds, hours)
        )
    return result


def _counts(path: Path) -> dict[str, float]:
    """Returns the counts of a checkpoint of ours; zeros for weights from elsewhere."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):  # safetensors or an old format, which hold weights only
        content = {}
    return {name: float(content.get(name, 0)) for name in ("masks_seen", "images_seen", "global_step")}


def _hours(run_dir: Path, devices: int) -> float | None:
    """Returns the device hours of a whole run, None if it has not finished."""
    path = run_dir / "metrics.json"
    seconds = json.loads(path.read_text()).get("time/seconds") if path.is_file() else None
    return None if seconds is None else seconds * devices / 3600


def _share(hours: float | None, counts: dict[str, float], last: float) -> float | None:
    """Returns the part of the hours that was spent up to a checkpoint, by its step."""
    return None if hours is None else hours * counts["global_step"] / last


def _devices(run_dir: Path) -> int:
    """Returns the devices of all nodes of a run, 1 if it has no config."""
    path = run_dir / ".hydra" / "config.yaml"
    trainer = (yaml.safe_load(path.read_text()) if path.is_file() else {}).get("trainer", {})
    devices = trainer.get("devices", 1)
    return (len(devices) if isinstance(devices, list) else int(devices)) * int(trainer.get("num_nodes", 1))
