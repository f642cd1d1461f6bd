"""What is wrong with the images, in plain words, before any time is spent on training."""

from __future__ import annotations

import logging

from samtrain.data.datasets import SamDataset
from samtrain.data.image_set import ImageSet
from samtrain.data.preflight import check_samples
from samtrain.data.shards import expand_urls, is_remote
from samtrain.run.build import Config, transforms_of

log = logging.getLogger(__name__)


def look_at(config: Config, images: ImageSet, *, image_size: int, native: bool) -> list[str]:
    """Log the findings about some training images; remote ones are not fetched for it."""
    if any(is_remote(url) for source in images.train for url in expand_urls(source.urls)):
        return []
    transform, _ = transforms_of(config, image_size=image_size, native=native, jitter=None)
    dataset = SamDataset(
        images.train,
        transform,
        max_masks=config["loader"]["max_masks"],
        seed=config["seed"],
        on_error=config["data"]["on_error"],
    )
    findings = check_samples(dataset)
    for finding in findings:
        log.warning("preflight: %s", finding)
    if not findings:
        log.info("preflight: nothing wrong with the images looked at")
    return findings
