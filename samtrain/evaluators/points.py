"""Masks from clicks (section 7.1, appendix D): IoU by the number of clicks, and clicks until a mask is good.

Each image is encoded once, and its objects are clicked together. Everything that is measured of an object is in its row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import (
    REPORTED,
    box_ious,
    choose_objects,
    click_ious,
    draw_seed,
    image_size,
    mask_chunks,
    read_image,
    sampled_ious,
)
from samtrain.evaluators.evaluator import PredictorEvaluator, Row
from samtrain.metrics.summaries import MAX_CLICKS, clicks_until, mean_with_interval
from samtrain.prompts import CentreSampler

LEVELS = (0.80, 0.85, 0.90)  # IoU at which clicks are counted: NoC@80, 85, 90
# where a row has the IoU after 1 to 20 clicks at different pixels
NOC_NAMES = tuple(f"noc_iou_{k}" if k <= REPORTED[-1] else f"iou_{k}" for k in range(1, MAX_CLICKS + 1))


class Points(PredictorEvaluator):
    """Clicks each object up to 20 times, first in its middle, then in the middle of the error; and prompts with its box."""

    @torch.no_grad()
    def rows(self, image: Record) -> list[Row]:
        """Returns one row per object that has pixels, none for an image without objects.

        key, object, id, area, height, width
        iou_1 to iou_9        after so many clicks, the first in the middle of the object
        noc_iou_1 to _9, iou_10 to iou_20: the same without clicking a pixel twice, as RITM counts clicks; NaN once all objects
                              that were clicked together had reached 0.90
        oracle_iou_1          the best of the three masks of the first click
        random_iou_1, 2, 3, 5, 9 and random_oracle_iou_1: the same with the first click anywhere on the object
        box_iou               for the box of the object
        encode_seconds        of the image
        click_seconds         of one click on this object, as a share of those clicked together

        Raises ValueError as `evaluators.clicks.evaluate_clicks` does.
        """
        chosen = choose_objects(image, self.config.max_masks, self.seed)
        if not chosen:
            return []
        # encode the image
        pixels = read_image(image)
        begin = time.perf_counter()
        self.predictor.set_image(pixels)
        encode_seconds = time.perf_counter() - begin

        # click all objects, as many together as fit
        rows: list[Row] = []
        objects, (height, width) = image.annotation["annotations"], image_size(image)
        for indices, masks_NHW in mask_chunks(image, chosen, self.predictor.device):
            scores, click_seconds = self._measure(masks_NHW, draw_seed(image, self.seed, len(rows)))
            for n, i in enumerate(indices):
                rows.append(
                    {
                        "key": image.key, "object": i, "id": objects[i].get("id"), "area": int(masks_NHW[n].sum()),
                        "height": height, "width": width,
                        **{name: math.nan for name in NOC_NAMES},
                        **{name: float(ious[n]) for name, ious in scores.items()},
                        "encode_seconds": encode_seconds, "click_seconds": click_seconds,
                    }
                )  # fmt: skip
        return rows

    def _measure(self, masks_NHW: Tensor, seed: int) -> tuple[dict[str, Tensor], float]:
        """Returns the IoUs of objects that are clicked together, (N,) each, and the seconds per click and object."""
        # no pixel is clicked twice, until all masks are good
        begin = time.perf_counter()
        sampler = CentreSampler(num_points=MAX_CLICKS, repeat=False)
        scores = sampled_ious(self.predictor.decoder(), masks_NHW, sampler, enough=LEVELS[-1])
        num_clicks = len(scores) - 1  # besides the IoU of every click there is oracle_iou_1
        seconds = (time.perf_counter() - begin) / num_clicks / len(masks_NHW)
        scores |= {name: scores[name.removeprefix("noc_")] for name in NOC_NAMES if name.startswith("noc_")}
        # the paper's clicks, which are other ones only if one of them met a clicked pixel
        if sampler.moved_at is not None and sampler.moved_at <= REPORTED[-1]:
            scores |= click_ious(self.predictor.decoder(), masks_NHW, REPORTED[-1])
        # the first click anywhere
        anywhere = click_ious(self.predictor.decoder(), masks_NHW, REPORTED[-1], first="random", seed=seed)
        scores |= {f"random_{name}": ious for name, ious in anywhere.items() if _is_reported(name)}
        return scores | box_ious(self.predictor.decoder(), masks_NHW), seconds

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns the metrics of one set; raises ValueError without rows.

        miou_1, 2, 3, 5, 9, oracle_miou_1, the same with `random_` before them, and box_miou; each also with `_low` and
                              `_high`, the ends of its 95 % interval over images
        noc_80, 85, 90        mean number of clicks until that IoU, 20 for objects that do not reach it
        failures_80, 85, 90   objects that do not reach that IoU in 20 clicks
        click_seconds         the median
        objects, images       how many there are
        """
        keys = [row["key"] for row in rows]
        found: dict[str, float] = {"objects": float(len(rows)), "images": float(len(set(keys)))}
        # mean IoUs
        names = [f"{prefix}iou_{k}" for prefix in ("", "random_") for k in REPORTED]
        for name in [*names, "oracle_iou_1", "random_oracle_iou_1", "box_iou"]:
            mean = name.replace("iou", "miou")
            values = [row[name] for row in rows]
            found[mean], found[f"{mean}_low"], found[f"{mean}_high"] = mean_with_interval(values, keys, self.seed)
        # clicks until a mask is good
        ious_NK = np.array([[row[name] for name in NOC_NAMES] for row in rows])
        for level in LEVELS:
            clicks, failed = clicks_until(ious_NK, level)
            found[f"noc_{100 * level:.0f}"] = float(clicks.mean())
            found[f"failures_{100 * level:.0f}"] = float(failed.sum())
        found["click_seconds"] = float(np.median([row["click_seconds"] for row in rows]))
        return found


def _is_reported(name: str) -> bool:
    return name == "oracle_iou_1" or int(name.removeprefix("iou_")) in REPORTED
