"""`task=detector`: train an object detector on the boxes of all masks, and measure what it finds."""

from __future__ import annotations

import logging
import time
from dataclasses import fields
from pathlib import Path

from samtrain.data.datasets import Source
from samtrain.data.image_set import ImageSet, records
from samtrain.data_engine.ledger import collected_by
from samtrain.detector import Detector, DetectorRecipe, Running, load_detector, train_detector
from samtrain.metrics.boxes import evaluate_boxes
from samtrain.report import write_report
from samtrain.run.build import Config, device_of
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.image_sets import open_set
from samtrain.run.training import validation_interval
from samtrain.tasks.rounds.schedule import stage_1_of
from samtrain.training.loggers import make_loggers

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Train on `config.data`, or on the masks that `config.stage1_run` has collected; go on if `run_dir` holds a part of it.

    Returns what metrics.json holds.
    """
    begin = time.perf_counter()
    settings = config["detector"]
    images = open_set(config["data"], config["data_dir"])
    path = train_detector(
        images.train if config["stage1_run"] is None else [Source(collected_by(stage_1_of(config)), last_counts=True)],
        settings["init"] and Path(settings["init"]),
        run_dir,
        recipe=recipe_of(config),
        seed=config["seed"],
        model=model_of(config),
        val=images.val,
        size_limits=tuple(config["size_limits"]),
        loggers=make_loggers(run_dir, config["logger"]),
        running=running_of(config),
    )
    metrics: Metrics = {**test_metrics(config, load_detector(path), images)}
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    write_report(run_dir)
    return metrics


def recipe_of(config: Config) -> DetectorRecipe:
    """How `config.detector` is trained."""
    return DetectorRecipe(**{field.name: config["detector"][field.name] for field in fields(DetectorRecipe)})


def model_of(config: Config) -> Config:
    """What `build_detector` takes, of `config.detector`."""
    return {key: config["detector"][key] for key in ("name", "image_size", "backbone_weights")}


def running_of(config: Config) -> Running:
    """On what, and how often it says something; one device, whatever trainer.devices says."""
    settings, callbacks, loader = config["detector"], config["callbacks"], config["loader"]
    return Running(
        accelerator=config["trainer"]["accelerator"],
        precision=config["trainer"]["precision"],
        num_workers=loader["num_workers"],
        cache_images=loader["cache_images"],
        on_error=config["data"]["on_error"],
        val_every_steps=validation_interval(settings["steps"], settings["val_every_steps"]),
        checkpoint_every_steps=callbacks["checkpoint_every_steps"],
        log_every_steps=callbacks["log_every_steps"],
        progress=callbacks["progress"],
    )


def test_metrics(config: Config, detector: Detector, images: ImageSet) -> dict[str, float]:
    """`test/box_ap`, ... on whole images; nothing where no image was held back for the test."""
    if not images.test:
        log.warning("no images are held back for the test: no test/box_* (data.test)")
        return {}
    settings = config["detector"]
    metrics = evaluate_boxes(
        detector.to(device_of(config)).detect,
        records(images.test, config["data"]["on_error"]),
        max_mask_area=settings["max_mask_area"],
        size_limits=tuple(config["size_limits"]),
    )
    found = {f"test/{name}": value for name, value in metrics.items()}
    log.info("detector: %s", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found
