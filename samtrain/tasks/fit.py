"""`task=fit`: trains one model, measures it on the test images, and writes the report."""

from __future__ import annotations

import logging
import time
from itertools import islice
from pathlib import Path

import numpy as np

from samtrain.data.datasets import SamDataset, Source
from samtrain.data.image_set import ImageSet
from samtrain.data.shards import ShardWriter
from samtrain.data_engine.stages import FitRequest
from samtrain.files import build_once
from samtrain.modeling.build import checkpoint_config, load_sam
from samtrain.report import write_report
from samtrain.report.advice import advice
from samtrain.run.build import loggers_of, sam_config_of, transforms_of
from samtrain.run.by_checkpoint import say_what_follows
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, is_first_rank, write_metrics
from samtrain.run.evaluation import (
    check_test_images,
    difficulty_metrics,
    general_metrics,
    start_metrics,
    test_metrics,
    text_metrics,
)
from samtrain.run.image_sets import data_config, is_native, open_set
from samtrain.run.inputs import check_inputs
from samtrain.run.preflight import check_images
from samtrain.run.seen_images import check_splits
from samtrain.run.settings import Config, ModelConfig, read
from samtrain.run.text import with_clip
from samtrain.run.training import train
from samtrain.training.config import LoaderConfig, TrainerConfig
from samtrain.training.loggers import finish
from samtrain.training.optim import OptimConfig

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Trains on `data`, or resumes what `run_dir` holds; returns the content of metrics.json."""
    begin = time.perf_counter()
    # look at the images, then train
    if config["checkpoint"]:
        say_what_follows(config, checkpoint_config(config["checkpoint"]))
    images = open_set(config["data"], config["data_dir"])
    check_splits(config, images, images.train)
    check_test_images(config, images)
    check_inputs(config, run_dir, images)
    request = fit_request(config, run_dir, images)
    if is_first_rank():
        check_images(config, images, image_size=sam_config_of(config).image_size, native=request.native)
    loggers = loggers_of(config, run_dir)
    config = with_clip(config, run_dir)
    result = train(config, request, loggers)
    if not is_first_rank():
        return {}
    # measure the best checkpoint on the test images
    metrics: Metrics = {**result.metrics}
    trained = load_sam(result.checkpoint)
    metrics.update(test_metrics(config, trained, images))
    metrics.update(text_metrics(config, trained, images, run_dir))
    if request.init is not None:
        start = load_sam(request.init, image_size=trained.config.image_size)
        metrics.update(start_metrics(config, start, images, frame=trained.config.frame))
        metrics.update(general_metrics(config, start, trained))
    for sentence in advice(metrics):
        log.warning(sentence)
    metrics.update(difficulty_metrics(config, images))
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    log.info("The report is %s.", write_report(run_dir))
    finish(loggers, metrics, checkpoint=result.checkpoint)
    return metrics


def fit_request(config: Config, directory: Path, images: ImageSet) -> FitRequest:
    """Returns the training that `model`, `checkpoint`, `optim`, `loader` and `trainer` describe."""
    sam = sam_config_of(config)
    loader, native = read(LoaderConfig, config, "loader"), is_native(config["data"], images, sam)
    train_on = images.train
    if loader.train_images is not None:
        train_on = [_some_images(config, loader, directory / "shards", images, native)]
    return FitRequest(
        directory=directory,
        model=read(ModelConfig, config, "model").name,
        init=Path(config["checkpoint"]) if config["checkpoint"] else None,
        train=train_on,
        val=[str(url) for source in train_on for url in source.urls] if loader.val_on_train else images.val,
        steps=read(TrainerConfig, config, "trainer").max_steps,
        learning_rate_factor=read(OptimConfig, config, "optim").learning_rate_factor,
        native=native,
        large_scale_jitter=loader.large_scale_jitter,
    )


def _some_images(config: Config, loader: LoaderConfig, folder: Path, images: ImageSet, native: bool) -> Source:
    """Returns a shard with `loader.train_images` images in which the transform keeps an object, drawn by the seed.

    One rank writes it, the others wait for it.
    """
    assert loader.train_images is not None
    wanted = loader.train_images

    def write(partial: Path) -> dict[str, int]:
        _, transform = transforms_of(config, image_size=sam_config_of(config).image_size, native=native, jitter=None)
        dataset = SamDataset(images.train, transform, max_masks=1, on_error=data_config(config["data"]).on_error)
        order = np.random.default_rng(config["seed"]).permutation(len(dataset)).tolist()
        chosen = list(islice((i for i in order if len(dataset.get(0, i).masks)), wanted))
        with ShardWriter(partial, "chosen", max_count=wanted) as writer:
            for record in map(dataset.record, sorted(chosen)):
                writer.write(record.key, record.image_bytes, record.ext, record.annotation)
        return {"images": len(chosen)}

    return Source(sorted(map(str, build_once(folder, write, "chosen.json").glob("*.tar"))))
