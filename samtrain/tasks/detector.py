"""`task=detector`: trains an object detector on the boxes of all masks, and measures it on the test images."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from samtrain.data.datasets import Source
from samtrain.data.image_set import ImageSet, records
from samtrain.data_engine.ledger import collected_by
from samtrain.detector import Detector, DetectorRecipe, RuntimeOptions, load_detector, train_detector
from samtrain.metrics.boxes import evaluate_boxes
from samtrain.report import write_report
from samtrain.run.build import device_of, loggers_of
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.image_sets import data_config, open_set
from samtrain.run.inputs import check_inputs
from samtrain.run.settings import Config, read
from samtrain.run.trainer import validation_interval
from samtrain.tasks.rounds.schedule import stage_1_of
from samtrain.training.config import CallbacksConfig, LoaderConfig, TrainerConfig

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Trains on `data`, or on the masks that `stage1_run` has collected; resumes what `run_dir` holds.

    Returns the content of metrics.json.
    """
    begin = time.perf_counter()
    recipe = recipe_of(config)
    images = open_set(config["data"], config["data_dir"])
    collected = [] if config["stage1_run"] is None else collected_by(stage_1_of(config))
    check_inputs(config, run_dir, images, **({"masks of stage1_run": collected} if collected else {}))
    # train on the boxes of all masks
    path = train_detector(
        [Source(collected, last_counts=True)] if collected else images.train,
        run_dir,
        recipe=recipe,
        seed=config["seed"],
        val=images.val,
        size_limits=tuple(config["size_limits"]),
        loggers=loggers_of(config, run_dir),
        options=options_of(config),
    )
    # measure
    metrics: Metrics = {**test_metrics(config, load_detector(path), images)}
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    write_report(run_dir)
    return metrics


def recipe_of(config: Config) -> DetectorRecipe:
    """Returns the settings of the detector, with a validation after the last step and none twice."""
    recipe = read(DetectorRecipe, config, "detector")
    if recipe.val_every_steps is None:
        return recipe
    return replace(recipe, val_every_steps=validation_interval(recipe.steps, recipe.val_every_steps))


def options_of(config: Config) -> RuntimeOptions:
    """Returns what a detector is trained on and how often it reports; it uses one device, whatever `trainer.devices` is."""
    trainer = read(TrainerConfig, config, "trainer")
    callbacks, loader = read(CallbacksConfig, config, "callbacks"), read(LoaderConfig, config, "loader")
    return RuntimeOptions(
        accelerator=trainer.accelerator,
        precision=trainer.precision,
        num_workers=loader.num_workers,
        cache_images=loader.cache_images,
        on_error=data_config(config["data"]).on_error,
        checkpoint_every_steps=callbacks.checkpoint_every_steps,
        log_every_steps=callbacks.log_every_steps,
        progress=callbacks.progress,
    )


def test_metrics(config: Config, detector: Detector, images: ImageSet) -> dict[str, float]:
    """Returns `test/box_ap` and others, measured on whole images; nothing if no image is held back for the test."""
    if not images.test:
        log.warning("test/box_* are not measured, because no images are held back for the test (data.test).")
        return {}
    metrics = evaluate_boxes(
        detector.to(device_of(config)).detect,
        records(images.test, data_config(config["data"]).on_error),
        max_mask_area=recipe_of(config).max_mask_area,
        size_limits=tuple(config["size_limits"]),
    )
    found = {f"test/{name}": value for name, value in metrics.items()}
    log.info("The detector reaches %s on the test images.", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found
