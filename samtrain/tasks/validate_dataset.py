"""`task=validate_dataset`: whether shards or a folder are sound SA-1B; exit status 1 where they are not."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

from samtrain.data.validate import validate
from samtrain.files import write_text
from samtrain.run.build import Config
from samtrain.run.directory import Metrics, write_metrics

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Write `validation.json`; raises ValueError, which is exit status 1, where something is wrong."""
    settings = config["validate"]
    if settings["dataset"] is None:
        raise ValueError("validate.dataset is null: name shards, or a folder of images with a JSON each")
    verdict = validate(settings["dataset"])
    shown: Counter[str] = Counter()
    for fault in verdict.faults:
        shown[fault.kind] += 1
        if shown[fault.kind] <= settings["max_messages"]:
            log.error("%s", fault)
    for note in verdict.notes[: settings["max_messages"]]:
        log.warning("%s", note)
    counts = verdict.counts()
    content = {
        "dataset": settings["dataset"],
        "sound": verdict.is_sound,
        "images": verdict.images,
        "masks": verdict.masks,
        "faults": counts,
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
    log.info("%s: %d images, %d masks", settings["dataset"], verdict.images, verdict.masks)
    if not verdict.is_sound:
        told = ", ".join(f"{count} x {kind}" for kind, count in counts.items()) or "there is no image in it"
        raise ValueError(f"{settings['dataset']} is not sound: {told}. All of it: {run_dir / 'validation.json'}")
    log.info("sound: nothing wrong was found")
    return metrics
