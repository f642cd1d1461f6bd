"""Zero-shot single point valid mask evaluation (section 7.1, appendix D): IoU by clicks, clicks until a mask is good.

One encoding an image; all objects of it are clicked together. What is measured of an object is a row; everything else is
made of rows, so that anyone can ask their own question of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import (
    REPORTED,
    box_ious,
    choose_objects,
    click_ious,
    draw_of,
    image_of,
    objects_together,
    size_of,
)
from samtrain.inference.predictor import SamPredictor
from samtrain.metrics.summaries import MAX_CLICKS, clicks_until, mean_with_interval

LEVELS = (0.80, 0.85, 0.90)  # IoU at which clicks are counted: NoC@80, 85, 90
Row = dict[str, Any]


@torch.no_grad()
def point_rows(predictor: SamPredictor, record: Record, *, max_masks: int | None = None, seed: int = 0) -> list[Row]:
    """A row for each object of an image that has pixels: key, object, id, area, height, width, and

    `iou_1` to `iou_20` after so many clicks, the first in the middle of the object, NaN once all objects that were clicked
    together were at 90 %; `oracle_iou_1` of the best of three masks; `random_iou_1`, 2, 3, 5, 9 and `random_oracle_iou_1`
    with the first click anywhere on it; `box_iou` of its box; `encode_seconds` of the image and `click_seconds` of a
    click on this object among those clicked together. [] for an image without objects; raises ValueError as
    `evaluators.clicks.evaluate_clicks`.
    """
    chosen = choose_objects(record, max_masks, seed)
    if not chosen:
        return []
    image = image_of(record)
    begun = time.perf_counter()
    predictor.set_image(image)
    encode_seconds = time.perf_counter() - begun

    rows: list[Row] = []
    objects, size = record.annotation["annotations"], size_of(record)
    for indices, masks in objects_together(record, chosen, predictor.device):
        begun = time.perf_counter()
        scores = click_ious(predictor.decoder(), masks, MAX_CLICKS, enough=LEVELS[-1])
        seconds = (time.perf_counter() - begun) / (len(scores) - 1) / len(indices)
        draw = draw_of(record, seed, len(rows))
        anywhere = click_ious(predictor.decoder(), masks, REPORTED[-1], first="random", seed=draw)
        scores |= {f"random_{name}": ious for name, ious in anywhere.items() if _is_reported(name)}
        scores |= box_ious(predictor.decoder(), masks)
        for n, i in enumerate(indices):
            rows.append(
                {
                    "key": record.key, "object": i, "id": objects[i].get("id"), "area": int(masks[n].sum()),
                    "height": size[0], "width": size[1],
                    **{f"iou_{k}": math.nan for k in range(1, MAX_CLICKS + 1)},
                    **{name: float(ious[n]) for name, ious in scores.items()},
                    "encode_seconds": encode_seconds, "click_seconds": seconds,
                }
            )  # fmt: skip
    return rows


def summarise(rows: Sequence[Row], seed: int = 0) -> dict[str, float]:
    """The table's numbers of one set: `miou_1`, 2, 3, 5, 9, `oracle_miou_1`, the same with `random_` before, `box_miou`,
    each with `_low` and `_high` of its 95 % interval over images; `noc_80`, 85, 90 and `failures_80`, ..., the objects
    that 20 clicks did not bring there; `click_seconds`; `objects`, `images`.

    Raises ValueError without rows.
    """
    keys = [row["key"] for row in rows]
    found: dict[str, float] = {"objects": float(len(rows)), "images": float(len(set(keys)))}
    names = [f"{prefix}iou_{k}" for prefix in ("", "random_") for k in REPORTED]
    for name in [*names, "oracle_iou_1", "random_oracle_iou_1", "box_iou"]:
        said = name.replace("iou", "miou")
        found[said], found[f"{said}_low"], found[f"{said}_high"] = mean_with_interval([row[name] for row in rows], keys, seed)
    ious = np.array([[row[f"iou_{k}"] for k in range(1, MAX_CLICKS + 1)] for row in rows])
    for level in LEVELS:
        clicks, never = clicks_until(ious, level)
        found[f"noc_{100 * level:.0f}"] = float(clicks.mean())
        found[f"failures_{100 * level:.0f}"] = float(never.sum())
    found["click_seconds"] = float(np.median([row["click_seconds"] for row in rows]))
    return found


def mean_over_sets(sets: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean over sets of each number that all have, every set counting once (the paper's top line); counts are summed."""
    summed = ("objects", "images", "ungrouped", *(f"failures_{100 * level:.0f}" for level in LEVELS))
    names = [name for name in sets[0] if not name.endswith(("_low", "_high")) and all(name in each for each in sets)]
    over = {name: np.sum if name.rsplit("/", 1)[-1] in summed else np.mean for name in names}
    return {name: float(over[name]([each[name] for each in sets])) for name in names}


def _is_reported(name: str) -> bool:
    return name == "oracle_iou_1" or int(name.removeprefix("iou_")) in REPORTED
