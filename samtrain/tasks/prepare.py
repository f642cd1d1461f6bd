"""`task=prepare`: turns images with masks, or synthetic scenes, into shards; other tasks do so by themselves if needed."""

from __future__ import annotations

from pathlib import Path

from samtrain.run.build import sam_config_of
from samtrain.run.image_sets import is_native, open_set
from samtrain.run.preflight import check_images
from samtrain.run.settings import Config


def run(config: Config, run_dir: Path) -> None:
    """Writes the shards of `data` below `data_dir`, and logs what looks wrong with the images."""
    images = open_set(config["data"], config["data_dir"])
    sam = sam_config_of(config)
    check_images(config, images, image_size=sam.image_size, native=is_native(config["data"], images, sam))
