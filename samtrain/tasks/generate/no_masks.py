"""Says why no image got a mask: the scores of the model, beside the thresholds that its masks had to reach."""

from __future__ import annotations

import logging

import torch

from samtrain.data.decode import decode_shown
from samtrain.data_engine.automatic.inputs import InputImage
from samtrain.run.build import make_generator
from samtrain.run.settings import Config

log = logging.getLogger(__name__)

NO_LIMITS = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


def log_why_no_masks(config: Config, images: list[InputImage], device: torch.device) -> None:
    """Logs a warning with the highest scores in the first image that can be read, and what to set."""
    limits = {key: config["generator"][key] for key in NO_LIMITS if key in config["generator"]}
    for image in images:
        try:
            shown = decode_shown(image.read(), image.name)
        except ValueError:
            continue
        generator = make_generator({**config, "generator": {**config["generator"], **dict.fromkeys(limits, 0.0)}}, device)
        found = generator.generate(shown)
        best = {key: max((each[key] for each in found), default=0.0) for key in ("predicted_iou", "stability_score")}
        thresholds = ", ".join(f"generator.{key} is {value:g}" for key, value in limits.items())
        log.warning(
            "No image got a mask. Without thresholds, the masks of %s reach a predicted IoU of %.2f and a stability of %.2f at "
            "most (%s). Lower the thresholds, choose generator=laptop for a small model, or use a checkpoint that was trained "
            "for longer.",
            image.name, best["predicted_iou"], best["stability_score"], thresholds or "the generator has none",
        )  # fmt: skip
        return
