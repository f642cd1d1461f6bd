"""What a run learned from what it was given: its checkpoints, with masks, annotator's seconds and device hours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml


@dataclass(frozen=True)
class Milestone:
    """A checkpoint of a run, and what had gone into it.

    masks:              annotated so far (data-engine runs)
    masks_seen:         objects that the loss was taken of, each time counted, over all trainings up to here
    images_seen:        images, likewise
    annotator_seconds:  modelled, or people's, so far (data-engine runs)
    device_hours:       of the training, validations included, times the devices of the run; of rounds that were killed the
                        last process's alone, without the detector; of one training its whole run's, in proportion of steps.
                        None where no clock was read
    """

    name: str
    checkpoint: str
    masks: float | None
    masks_seen: float
    images_seen: float
    annotator_seconds: float | None
    device_hours: float | None


def milestones(run_dir: Path) -> list[Milestone]:
    """Those of a run of the data engine: the first model and the one of each round; of one training: its best and its last.

    Raises ValueError for a directory that holds neither, or a checkpoint that is gone.
    """
    devices = _devices(run_dir)
    if (run_dir / "ledger.jsonl").is_file():
        lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
        return _of_rounds(run_dir, lines, devices)
    found = [path for name in ("best", "last") if (path := run_dir / "checkpoints" / f"{name}.ckpt").is_file()]
    if not found:
        raise ValueError(f"{run_dir} has neither ledger.jsonl nor checkpoints/ (zero_shot.run): give the directory of a run")
    counts = {path: _counts(path) for path in found}
    hours = _hours(run_dir, devices)
    last = max(counts.values(), key=lambda each: each["global_step"])["global_step"] or 1
    return [
        Milestone(path.stem, str(path), None, each["masks_seen"], each["images_seen"], None, _share(hours, each, last))
        for path, each in sorted(counts.items(), key=lambda item: item[1]["global_step"])
    ]


def _of_rounds(run_dir: Path, lines: list[dict[str, Any]], devices: int) -> list[Milestone]:
    pretrained = run_dir / "pretrain" / "fit.json"
    hours = json.loads(pretrained.read_text())["wall"] * devices / 3600 if pretrained.is_file() else 0.0
    result, masks_seen, seconds = [], 0.0, 0.0
    for line in lines:
        checkpoint = run_dir / line["checkpoint"]
        if not checkpoint.is_file():
            raise ValueError(f"{checkpoint} is gone, which {run_dir}/ledger.jsonl names (zero_shot.run): bring it back")
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
    """What a checkpoint of ours says of its training; zeros for foreign weights."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):  # safetensors, or an old form: weights alone
        content = {}
    return {name: float(content.get(name, 0)) for name in ("masks_seen", "images_seen", "global_step")}


def _hours(run_dir: Path, devices: int) -> float | None:
    path = run_dir / "metrics.json"
    seconds = json.loads(path.read_text()).get("time/seconds") if path.is_file() else None
    return None if seconds is None else seconds * devices / 3600


def _share(hours: float | None, counts: dict[str, float], last: float) -> float | None:
    return None if hours is None else hours * counts["global_step"] / last


def _devices(run_dir: Path) -> int:
    """Of all nodes of the run, 1 where its config is not there."""
    path = run_dir / ".hydra" / "config.yaml"
    trainer = (yaml.safe_load(path.read_text()) if path.is_file() else {}).get("trainer", {})
    devices = trainer.get("devices", 1)
    return (len(devices) if isinstance(devices, list) else int(devices)) * int(trainer.get("num_nodes", 1))
