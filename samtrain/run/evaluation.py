"""Measures a model on the test images: `test/*`, which is reported and never chooses anything."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from samtrain.data.difficulty import best_single_mask_miou, decoded_images, flood_fill_miou
from samtrain.data.image_set import ImageSet, count_records, records
from samtrain.data.shards import expand_urls
from samtrain.evaluators.clicks import Row, evaluate_clicks
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.evaluators.text import Text
from samtrain.inference.frames import make_predictor
from samtrain.modeling.sam import Sam
from samtrain.panels import save_image, tile_panels
from samtrain.run.build import device_of
from samtrain.run.image_sets import data_config
from samtrain.run.settings import Config, EvaluatorConfig, read
from samtrain.run.targets import build
from samtrain.run.text import text_settings
from samtrain.terminal import follow
from samtrain.text.names import unique_names

log = logging.getLogger(__name__)

SENTENCES = 8  # that are drawn with their masks


def test_metrics(config: Config, sam: Sam, images: ImageSet, *, frame: str | None = None) -> dict[str, float]:
    """Returns `test/miou_1`, ... of the predictor in original pixels; empty if no images are held back for the test.

    Images are shown as in the model's training, or as `frame` says.
    """
    if not images.test:
        log.warning("There are no test/* metrics, because no images are held back for the test (data.test).")
        return {}
    return _measure(config, sam, images.test, "test", frame)


def start_metrics(config: Config, start: Sam, images: ImageSet, *, frame: str) -> dict[str, float]:
    """Returns `test/start_*`, the numbers of the model that a training started from, shown images as the trained one is."""
    found = _measure(config, start, images.test, "test", frame) if images.test else {}
    return {name.replace("/", "/start_"): value for name, value in found.items()}


def general_metrics(config: Config, start: Sam, trained: Sam) -> dict[str, float]:
    """Returns `general/start_*` and `general/*`, both models on the images of `evaluator.general`; empty without any."""
    general = read(EvaluatorConfig, config, "evaluator").general
    if general is None:
        return {}
    urls = expand_urls(general, "evaluator.general")
    before = _measure(config, start, urls, "general", trained.config.frame)
    after = _measure(config, trained, urls, "general", None)
    return {**{name.replace("/", "/start_"): value for name, value in before.items()}, **after}


def _measure(config: Config, sam: Sam, urls: list[str], name: str, frame: str | None) -> dict[str, float]:
    """Returns the model's numbers on the images of shards, as `<name>/miou_1` and so on."""
    settings, on_error = read(EvaluatorConfig, config, "evaluator"), data_config(config["data"]).on_error
    metrics, _ = evaluate_clicks(
        make_predictor(sam.to(device_of(config)), frame=frame),
        follow(records(urls, on_error), f"measuring {name} images", count_records(urls)),
        num_points=settings.num_points,
        max_masks=settings.max_masks,
        seed=config["seed"],
        on_error=on_error,
    )
    found = {f"{name}/{key}": value for key, value in metrics.items()}
    shown = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
    log.info("%s on the %s images: %s.", sam.config.model, name, shown)
    return found


def text_metrics(config: Config, sam: Sam, images: ImageSet, run_dir: Path) -> dict[str, float]:
    """Returns `test/text_miou`, ... of sentences instead of clicks, by `Text`; empty without names of objects, or a CLIP.

    The masks of some sentences are drawn in `panels/sentences.png`.
    """
    if config["clip"] is None:
        return {}
    on_error = data_config(config["data"]).on_error
    if not any(unique_names(record.annotation["annotations"]) for record in records(images.test, on_error)):
        return {}
    max_masks = read(EvaluatorConfig, config, "evaluator").max_masks
    evaluator = Text(
        ZeroShotConfig(protocol="text", max_masks=max_masks),
        seed=config["seed"],
        on_error=on_error,
        make_generator=build(config["generator"], "generator"),
        **text_settings(config),
    )
    evaluator.load(sam.to(device_of(config)))
    shown = follow(records(images.test, on_error), "measuring sentences", count_records(images.test))
    rows: list[Row] = []
    tiles: list[list[np.ndarray]] = []
    for record in shown:
        rows += evaluator.rows(record)
        tiles += evaluator.panels(record) if len(tiles) < SENTENCES else []
    if tiles:
        save_image(run_dir / "panels" / "sentences.png", tile_panels(tiles[:SENTENCES]))
    summary = evaluator.summary(rows)
    found = {f"test/{name}": value for name, value in summary.items() if name.startswith("text_")}
    means = {name: value for name, value in found.items() if not name.endswith(("_low", "_high"))}
    log.info("Sentences on the test images: %s.", ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
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
