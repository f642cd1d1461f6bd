"""Measures a model on the test images: `test/*`, which is reported and never chooses anything."""

from __future__ import annotations

import logging

from samtrain.data.difficulty import best_single_mask_miou, decoded_images, flood_fill_miou
from samtrain.data.image_set import ImageSet, count_records, records
from samtrain.evaluators.clicks import evaluate_clicks
from samtrain.inference.frames import make_predictor
from samtrain.modeling.sam import Sam
from samtrain.run.build import device_of
from samtrain.run.image_sets import data_config
from samtrain.run.settings import Config, EvaluatorConfig, read
from samtrain.terminal import follow

log = logging.getLogger(__name__)


def test_metrics(config: Config, sam: Sam, images: ImageSet, *, frame: str | None = None) -> dict[str, float]:
    """Returns `test/miou_1`, ... of the predictor in original pixels; empty if no images are held back for the test.

    Images are shown as in the model's training, or as `frame` says.
    """
    if not images.test:
        log.warning("There are no test/* metrics, because no images are held back for the test (data.test).")
        return {}
    settings, on_error = read(EvaluatorConfig, config, "evaluator"), data_config(config["data"]).on_error
    metrics, _ = evaluate_clicks(
        make_predictor(sam.to(device_of(config)), frame=frame),
        follow(records(images.test, on_error), "measuring test images", count_records(images.test)),
        num_points=settings.num_points,
        max_masks=settings.max_masks,
        seed=config["seed"],
        on_error=on_error,
    )
    found = {f"test/{name}": value for name, value in metrics.items()}
    log.info("%s on the test images: %s.", sam.config.model, ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


def check_test_images(config: Config, images: ImageSet) -> None:
    """Raises ValueError if there are test images and none of them holds an object: training would end in this error."""
    on_error = data_config(config["data"]).on_error
    if images.test and not any(record.annotation["annotations"] for record in records(images.test, on_error)):
        raise ValueError("no test image holds an object, so nothing could be measured: give other images (data.test)")


def difficulty_metrics(config: Config, images: ImageSet) -> dict[str, float]:
    """Returns what one mask per click can reach at most on the test scenes, and what a flood fill reaches.

    Empty for data sets that are not synthetic.
    """
    if config["data"].get("kind") != "synthetic" or not images.test:
        return {}
    shown = list(decoded_images(records(images.test)))
    return {
        "test/ceiling_miou_1": best_single_mask_miou(shown),
        "test/flood_fill_miou_1": flood_fill_miou(shown),
    }
