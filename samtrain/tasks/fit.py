"""`task=fit`: train one model, measure what it is worth, leave a page that says so."""

from __future__ import annotations

import logging
import time
from itertools import islice
from pathlib import Path

from samtrain.data.datasets import SamDataset, Source
from samtrain.data.image_set import ImageSet
from samtrain.data.shards import ShardWriter
from samtrain.data_engine.stages import FitRequest
from samtrain.files import build_once
from samtrain.modeling.build import load_sam
from samtrain.report import write_report
from samtrain.run.build import Config, learning_rate_of, sam_config_of, transforms_of
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, is_first_rank, write_metrics
from samtrain.run.image_sets import is_native, open_set
from samtrain.run.preflight import look_at
from samtrain.run.training import train
from samtrain.tasks.evaluate import difficulty_metrics, test_metrics
from samtrain.training.loggers import finish, make_loggers

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Train on `config.data`, go on if `run_dir` holds a part of it; returns what metrics.json holds."""
    begin = time.perf_counter()
    images = open_set(config["data"], config["data_dir"])
    request = fit_request(config, run_dir, images)
    if is_first_rank():
        look_at(config, images, image_size=sam_config_of(config).image_size, native=request.native)
    loggers = make_loggers(run_dir, config["logger"], config)
    result = train(config, request, loggers)
    if not is_first_rank():
        return {}
    metrics: Metrics = {**result.metrics}
    metrics.update(test_metrics(config, load_sam(result.checkpoint), images, native=request.native))
    metrics.update(difficulty_metrics(config, images))
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    log.info("report: %s", write_report(run_dir))
    finish(loggers, metrics, checkpoint=result.checkpoint)
    return metrics


def fit_request(config: Config, directory: Path, images: ImageSet) -> FitRequest:
    """The training that `model`, `checkpoint`, `optim` and `trainer` describe."""
    sam = sam_config_of(config)
    loader, native = config["loader"], is_native(config["data"], images, sam)
    train_on = images.train
    if loader["train_images"] is not None:
        train_on = [_first_images(config, directory / "shards", images, native)]
    return FitRequest(
        directory=directory,
        model=config["model"]["name"],
        init=config["checkpoint"] and Path(config["checkpoint"]),
        train=train_on,
        val=[str(url) for source in train_on for url in source.urls] if loader["val_on_train"] else images.val,
        steps=config["trainer"]["max_steps"],
        learning_rate=learning_rate_of(config, sam.model, config["optim"]["learning_rate_factor"]),
        native=native,
        large_scale_jitter=loader["large_scale_jitter"],
    )


def _first_images(config: Config, folder: Path, images: ImageSet, native: bool) -> Source:
    """A shard with the first `loader.train_images` images in which the transform finds an object; one rank makes it."""

    def write(partial: Path) -> dict[str, int]:
        _, transform = transforms_of(config, image_size=sam_config_of(config).image_size, native=native, jitter=None)
        dataset = SamDataset(images.train, transform, max_masks=1, on_error=config["data"]["on_error"])
        wanted = config["loader"]["train_images"]
        chosen = list(islice((i for i in range(len(dataset)) if len(dataset.get(0, i).masks)), wanted))
        with ShardWriter(partial, "first", max_count=wanted) as writer:
            for record in map(dataset.record, chosen):
                writer.write(record.key, record.image_bytes, record.ext, record.annotation)
        return {"images": len(chosen)}

    return Source(sorted(map(str, build_once(folder, write, "first.json").glob("*.tar"))))
