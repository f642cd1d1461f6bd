"""Checks the training images before any time is spent on training."""

from __future__ import annotations

import logging

from samtrain.data.datasets import SamDataset
from samtrain.data.image_set import ImageSet
from samtrain.data.preflight import check_samples
from samtrain.data.shards import expand_urls, is_remote
from samtrain.run.build import transforms_of
from samtrain.run.image_sets import data_config
from samtrain.run.settings import Config, read
from samtrain.training.config import LoaderConfig

log = logging.getLogger(__name__)


def check_images(config: Config, images: ImageSet, *, image_size: int, native: bool) -> list[str]:
    """Logs and returns what looks wrong in some training images; remote shards are not downloaded for it."""
    if any(is_remote(url) for source in images.train for url in expand_urls(source.urls)):
        return []
    transform, _ = transforms_of(config, image_size=image_size, native=native, jitter=None)
    dataset = SamDataset(
        images.train,
        transform,
        max_masks=read(LoaderConfig, config, "loader").max_masks,
        seed=config["seed"],
        on_error=data_config(config["data"]).on_error,
    )
    findings = check_samples(dataset)
    for finding in findings:
        log.warning("Preflight check: %s", finding)
    if not findings:
        log.info("The preflight check found nothing wrong with a sample of the images.")
    return findings
