"""`task=evaluate`: what a checkpoint is worth on images that it was neither trained nor chosen on."""

from __future__ import annotations

import logging
from pathlib import Path

from samtrain.data.difficulty import best_single_mask_miou, decoded_images, flood_fill_miou
from samtrain.data.image_set import ImageSet, records
from samtrain.evaluators.clicks import evaluate_clicks
from samtrain.modeling.build import load_sam
from samtrain.modeling.sam import Sam
from samtrain.run.build import Config, device_of, make_predictor
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.image_sets import is_native, open_set

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Test metrics of `config.checkpoint` on the test split of `config.data`."""
    if config["checkpoint"] is None:
        raise ValueError("checkpoint is null: task=evaluate needs one, checkpoint=FILE")
    images = open_set(config["data"], config["data_dir"])
    sam = load_sam(config["checkpoint"])
    native = is_native(config["data"], images, sam.config)
    metrics: Metrics = {**test_metrics(config, sam, images, native=native)}
    metrics.update(difficulty_metrics(config, images))
    write_metrics(run_dir, metrics)
    return metrics


def test_metrics(config: Config, sam: Sam, images: ImageSet, *, native: bool) -> dict[str, float]:
    """`test/miou_1`, ... by the predictor, in original pixels; nothing where no image was held back for the test."""
    if not images.test:
        log.warning("no images are held back for the test: no test/* (data.test)")
        return {}
    metrics, _ = evaluate_clicks(
        make_predictor(sam.to(device_of(config)), native=native),
        records(images.test, config["data"]["on_error"]),
        num_points=config["evaluator"]["num_points"],
        max_masks=config["evaluator"]["max_masks"],
        seed=config["seed"],
        on_error=config["data"]["on_error"],
    )
    found = {f"test/{name}": value for name, value in metrics.items()}
    log.info("%s: %s", sam.config.model, ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


def difficulty_metrics(config: Config, images: ImageSet) -> dict[str, float]:
    """What no single mask a click can exceed on the test scenes, and what a flood fill reaches; synthetic sets only."""
    if config["data"]["kind"] != "synthetic" or not images.test:
        return {}
    shown = list(decoded_images(records(images.test)))
    return {
        "test/ceiling_miou_1": best_single_mask_miou(shown),
        "test/flood_fill_miou_1": flood_fill_miou(shown),
    }
