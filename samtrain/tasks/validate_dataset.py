"""`task=validate_dataset`: checks that shards or a folder are valid SA-1B; the exit status is 1 if they are not."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from samtrain.data.validate import Verdict, validate
from samtrain.files import write_text
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.settings import Config, read
from samtrain.terminal import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """The `validate` node.

    dataset:      shards, or a folder of images with one JSON each
    max_messages: faults of each kind that are logged; validation.json has all of them
    """

    dataset: str | list[str] | None
    max_messages: int

    def __post_init__(self) -> None:
        if self.max_messages < 0:
            raise ValueError(f"validate.max_messages is {self.max_messages}: set it to 0 or more")


def run(config: Config, run_dir: Path) -> Metrics:
    """Writes `validation.json` and returns its counts; raises ValueError, which is exit status 1, if anything is wrong."""
    settings = read(ValidateConfig, config, "validate")
    if settings.dataset is None:
        raise ValueError("validate.dataset is null: set it to shards, or to a folder of images with one JSON each")
    verdict = validate(settings.dataset)
    _log(verdict, settings.max_messages)
    metrics = _write(verdict, settings.dataset, run_dir)
    log.info("%s has %s with %s.", settings.dataset, counted(verdict.images, "image"), counted(verdict.masks, "mask"))
    if not verdict.is_sound:
        told = ", ".join(f"{count} x {kind}" for kind, count in verdict.counts().items()) or "it has no image"
        raise ValueError(f"{settings.dataset} is not valid: {told}. See {run_dir / 'validation.json'} for all faults")
    log.info("Nothing is wrong with it.")
    return metrics


def _log(verdict: Verdict, max_messages: int) -> None:
    """Logs the first faults of each kind and the first notes."""
    shown: Counter[str] = Counter()
    for fault in verdict.faults:
        shown[fault.kind] += 1
        if shown[fault.kind] <= max_messages:
            log.error("%s", fault)
    for note in verdict.notes[:max_messages]:
        log.warning("%s", note)


def _write(verdict: Verdict, dataset: str | list[str], run_dir: Path) -> Metrics:
    """Writes `validation.json` and the metrics."""
    content = {
        "dataset": dataset,
        "sound": verdict.is_sound,
        "images": verdict.images,
        "masks": verdict.masks,
        "faults": verdict.counts(),
        "messages": [str(fault) for fault in verdict.faults],
        "notes": [str(note) for note in verdict.notes],
    }
    write_text(run_dir / "validation.json", json.dumps(content, indent=1) + "\n")
    metrics: Metrics = {
        "validation/images": verdict.images,
        "validation/masks": verdict.masks,
        "validation/faults": len(verdict.faults),
    }
    write_metrics(run_dir, metrics)
    return metrics
