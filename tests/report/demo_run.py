"""A run directory with made-up numbers, laid out as a run of the data engine leaves it: for tests, and to look at.

`python tests/report/demo_run.py FOLDER` writes one with its report.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from samtrain.data_engine.ledger import append_line
from samtrain.data_engine.ledger_line import LedgerLine, from_flat
from samtrain.report import write_report

PROMOTED = [True, True, True, False, True, True, True, True, True, False, True, True]
MIOU = [0.42, 0.49, 0.55, 0.54, 0.61, 0.66, 0.69, 0.70, 0.715, 0.71, 0.73, 0.74]
MODELS = ["vit_tiny"] * 4 + ["vit_small"] * 8
ASSISTED_ROUNDS = 6


def write_demo(run_dir: Path, *, rounds: int = 6, finished: bool = True) -> Path:
    """All files of a run of so many rounds; without `finished` there is no metrics.json."""
    run_dir.mkdir(parents=True, exist_ok=True)
    _hydra(run_dir / ".hydra")
    seen = _training(run_dir / "pretrain", 300, 0, 1.9, 0.15, 0.42)
    for number in range(rounds + 1):
        append_line(run_dir, demo_line(number, seen))
        if number:
            folder = run_dir / "rounds" / str(number) / "fit"
            seen = _training(folder, 80, seen, 1.3 - 0.1 * number, MIOU[number - 1], MIOU[number])
    if finished:
        (run_dir / "metrics.json").write_text(json.dumps(_metrics(rounds)))
    return run_dir


def _hydra(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    config = {"name": "stage1 (made-up numbers)", "task": "rounds", "annotator": {"target_iou": 0.9}, "data": "<b>&"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "command": "python -m samtrain +experiment=stage1 data=folder data.root='<images> & more'",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "uncommitted": True,
        "cpus": 2,
        "host": "made-up",
        "python": "3.11.7",
        "torch": "2.15.0",
    }
    (folder / "environment.json").write_text(json.dumps(environment))


def _training(folder: Path, steps: int, seen: int, loss: float, start: float, end: float) -> int:
    """A metrics.csv with loss and validation, and a panel; the images seen at its end."""
    (folder / "panels").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seen)
    rows = []
    for step in range(5, steps + 1, 5):
        share, noise = step / steps, rng.normal(0, 0.06)
        value = loss * (0.45 + 0.55 * math.exp(-3 * share)) + noise
        row = {"step": step, "images_seen": seen + 4 * step, "train/loss": value}
        rows.append({**row, "train/dice_0": 0.5 * value, "train/dice_3": 0.35 * value})
        if step % 40 == 0 or step == steps:
            miou = start + (end - start) * share
            names = ("miou_1", "oracle_miou_1", "miou_3", "miou_5", "box_miou")
            rows[-1].update({f"val/{n}": min(miou + 0.07 * i, 0.98) for i, n in enumerate(names)})
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    image = np.kron(rng.integers(60, 255, (4, 24, 3)), np.ones((40, 40, 1))).astype(np.uint8)
    Image.fromarray(image).save(folder / "panels" / f"step_{steps:06d}.png")
    return seen + 4 * steps


def demo_line(number: int, seen: int) -> LedgerLine:
    used = max(n for n in range(number + 1) if PROMOTED[n])
    before = max((n for n in range(number) if PROMOTED[n]), default=None)
    drawn, filled = number > 0, number > ASSISTED_ROUNDS
    masks = 150 + 45 * number
    automatic = 12 * number * filled
    values: dict[str, Any] = {
        "round": number,
        "stage": "semi_automatic" if filled else "assisted_manual",
        "model": MODELS[number],
        "encoder": MODELS[used],
        "parent": None if before is None else f"{before:064x}",
        "checkpoint": f"rounds/{number}/fit/checkpoints/best.ckpt" if drawn else "pretrain/checkpoints/best.ckpt",
        "digest": f"{number:064x}",
        "images": 40 * drawn,
        "masks": masks * drawn,
        "masks_automatic": automatic,
        "masks_total": sum(150 + 45 * n for n in range(1, number + 1)),
        "images_total": 40 * number,
        "discarded": 3 * drawn,
        "images_skipped": 0,
        "images_left": (34 - 4 * number) * drawn,
        "masks_per_image": masks / 40 if drawn else None,
        "assisted_per_image": (masks - automatic) / 40 if drawn else None,
        "seconds_per_mask": 17.5 - 1.1 * number if drawn else None,
        "clicks_per_mask": 4.1 - 0.2 * number if drawn else None,
        "strokes_per_mask": 2.0 - 0.25 * number if drawn else None,
        "mask_iou": 0.895 + 0.004 * number if drawn else None,
        "automatic_precision": 0.88 + 0.006 * number if filled else None,
        "coverage": _coverage(number),
        "probe_masks": 70,
        "probe_seconds_per_mask": 21.0 - 1.4 * used,
        "probe_clicks_per_mask": 4.6 - 0.2 * used,
        "probe_mask_iou": 0.88 + 0.005 * used,
        "probe_good": 0.5 + 0.04 * used,
        "probe_coverage_alone": _coverage(used),
        "probe_coverage": _coverage(used),
        "probe_before": _probe_before() if number == 7 else {},
        "detector": f"rounds/{number}/detector/detector.pth" if filled else None,
        "detector_digest": f"{number:064x}" if filled else None,
        "images_seen": seen if drawn else 0,
        "promote_metric": "val/miou_1",
        "metrics_before": {} if before is None else _validation(before),
        "metrics_after": _validation(number),
        "promoted": PROMOTED[number],
        "shards": [{"path": f"rounds/{number}/shards/a.tar", "sha256": "0" * 64, "images": 40, "masks": masks}] * drawn,
        "wall": {"detector": 7.0 * filled, "annotate": 9.0, "shards": 0.2, "fit": 38.0, "measure": 2.1, "probe": 2.5}
        if drawn
        else {"measure": 2.0},
    }
    return from_flat(values, "demo line")


def _probe_before() -> dict[str, Any]:
    """The probe's result with the model that stage 2 began with."""
    numbers = {"masks": 70, "seconds_per_mask": 18.8, "clicks_per_mask": 4.0, "mask_iou": 0.9, "good": 0.6}
    covered = {"coverage_alone": _coverage(2), "coverage": _coverage(2)}
    return {f"probe_{key}": value for key, value in {**numbers, **covered}.items()}


def _coverage(number: int) -> dict[str, float | None]:
    """Better with each model, and worse where stage 2 brings other images."""
    share = 0.06 * (number if number <= ASSISTED_ROUNDS else number - 3)
    return {"all": 0.45 + share, "small": 0.3 + share, "medium": 0.47 + share, "large": min(0.6 + share, 1.0)}


def _validation(number: int) -> dict[str, float | None]:
    return {"val/miou_1": MIOU[number], "val/oracle_miou_1": MIOU[number] + 0.1, "val/miou_3": MIOU[number] + 0.12}


def _metrics(rounds: int) -> dict[str, float]:
    test = {
        "miou_1": 0.673,
        "oracle_miou_1": 0.781,
        "miou_2": 0.742,
        "miou_3": 0.771,
        "miou_5": 0.79,
        "box_miou": 0.812,
    }
    start = {f"test/start_{name}": value - 0.2 for name, value in test.items()}
    bounds = {"test/ceiling_miou_1": 0.842, "test/flood_fill_miou_1": 0.288}
    cost = {"time/seconds": 541.0, "memory/peak_gb": 2.4}
    if rounds > ASSISTED_ROUNDS:
        cost |= {"coverage/start_all": 0.57, "coverage/all": 0.93, "automatic/precision": 0.91}
    val = {f"val/{name}": value + 0.02 for name, value in test.items()}
    return {**{f"test/{name}": value for name, value in test.items()}, **start, **bounds, **cost, **val}


if __name__ == "__main__":
    print(write_report(write_demo(Path(sys.argv[1]))))
