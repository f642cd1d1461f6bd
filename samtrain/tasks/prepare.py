"""`task=prepare`: shards of images with masks, or of synthetic scenes; the other tasks do it where it is needed."""

from __future__ import annotations

from pathlib import Path

from samtrain.run.build import Config, sam_config_of
from samtrain.run.image_sets import is_native, open_set
from samtrain.run.preflight import check_images


def run(config: Config, run_dir: Path) -> None:
    """Prepare `config.data` below `config.data_dir`, and say what is wrong with it."""
    images = open_set(config["data"], config["data_dir"])
    sam = sam_config_of(config)
    check_images(config, images, image_size=sam.image_size, native=is_native(config["data"], images, sam))
