"""`task=preview`: draws what training sees: images at the input's size, their masks, and simulated prompts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samtrain.data.datasets import SamDataset, collate
from samtrain.panels import save_image, tile_panels
from samtrain.prompts import seeded_generator
from samtrain.run.build import make_prompts, sam_config_of, transforms_of
from samtrain.run.image_sets import data_config, is_native, open_set
from samtrain.run.preflight import check_images
from samtrain.run.settings import Config, read
from samtrain.terminal import counted
from samtrain.training.config import LoaderConfig
from samtrain.training.contact_sheet import row_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """The `preview` node: how many images are drawn, evenly spread over the training set."""

    images: int

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"preview.images is {self.images}: set it to 1 or more")


def run(config: Config, run_dir: Path) -> None:
    """Writes `preview.png` with one row per image."""
    settings, seed = read(PreviewConfig, config, "preview"), config["seed"]
    dataset = _training_set(config)
    count = min(settings.images, len(dataset))
    indices = np.linspace(0, len(dataset) - 1, count).astype(int).tolist()
    sampler = make_prompts(config)
    rows = [row_of(collate([dataset.get(0, i)]), sampler, seeded_generator("cpu", seed, i)) for i in indices]
    path = run_dir / "preview.png"
    save_image(path, tile_panels(rows))
    log.info("Drew %s in %s.", counted(count, "image"), path)


def _training_set(config: Config) -> SamDataset:
    """Returns the training images as a training would load them, after the preflight check."""
    images = open_set(config["data"], config["data_dir"])
    loader, sam = read(LoaderConfig, config, "loader"), sam_config_of(config)
    native = is_native(config["data"], images, sam)
    check_images(config, images, image_size=sam.image_size, native=native)
    transform, _ = transforms_of(config, image_size=sam.image_size, native=native, jitter=loader.large_scale_jitter)
    return SamDataset(
        images.train,
        transform,
        max_masks=loader.max_masks,
        seed=config["seed"],
        on_error=data_config(config["data"]).on_error,
    )
