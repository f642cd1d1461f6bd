"""`task=embed`: encodes images ahead of time; `EmbeddingStore` then finds their embeddings by their pixels."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from samtrain.data.decode import decode_shown
from samtrain.data.image_set import records
from samtrain.data.prepare.mask_files import IMAGES, files_below
from samtrain.data.shards import expand_urls
from samtrain.evaluators.clicks import image_size, read_image
from samtrain.inference.embeddings import EmbeddingStore
from samtrain.inference.frames import make_predictor
from samtrain.modeling.build import load_sam
from samtrain.ops.rle import decode_rle
from samtrain.prompts import seeded_generator
from samtrain.run.build import device_of
from samtrain.run.image_sets import asked_frame, data_config, open_set
from samtrain.run.settings import Config, read
from samtrain.run.text import clip_digest, make_clip
from samtrain.terminal import console
from samtrain.text.config import TextConfig
from samtrain.text.crops import draw_crops
from samtrain.text.store import TextStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """The `embed` node: a folder or glob of images, and the folder for their embeddings (None: in the run's directory).

    With `text` the objects of the data set are embedded by CLIP, with `text_draws` random crops of each.
    """

    images: str | None
    output: str | None
    text: bool = False
    text_draws: int = 4

    def __post_init__(self) -> None:
        if self.text_draws < 1:
            raise ValueError(f"embed.text_draws is {self.text_draws}: give 1 or more")


def run(config: Config, run_dir: Path) -> None:
    """Writes the embedding of each image that has none in `embed.output` yet; after a kill the same command resumes."""
    settings = read(EmbedConfig, config, "embed")
    if settings.text:
        _embed_objects(config, settings, Path(settings.output or run_dir / "text_embeddings"))
        return
    paths = _images(config, settings)
    store = EmbeddingStore(settings.output or run_dir / "embeddings")
    sam = load_sam(config["checkpoint"]).to(device_of(config))
    predictor = make_predictor(sam, frame=asked_frame(config["data"]))
    skip = data_config(config["data"]).on_error == "skip"
    counts: Counter[str] = Counter()
    for path in track(paths, "embedding images", console=console(), disable=not console().is_terminal):
        try:
            image = decode_shown(path.read_bytes(), str(path))
        except ValueError as error:
            if not skip:
                raise
            log.warning("An image is left out: %s", error)
            counts["left out"] += 1
            continue
        counts["existing" if store.set_image(predictor, image) else "new"] += 1
    log.info(
        "Embeddings in %s: %d images new, %d existed already, %d left out.",
        store.folder, counts["new"], counts["existing"], counts["left out"],
    )  # fmt: skip


@torch.no_grad()
def _embed_objects(config: Config, settings: EmbedConfig, folder: Path) -> None:
    """Writes the CLIP embeddings of all objects of the training and validation images that have none in the folder yet."""
    images, text = open_set(config["data"], config["data_dir"]), read(TextConfig, config, "text")
    clip = make_clip(config).to(device_of(config))
    store = TextStore(folder, clip_digest(config))
    tars = [tar for source in images.train for tar in expand_urls(source.urls)] + images.val
    counts: Counter[str] = Counter()
    for record in track(records(tars, data_config(config["data"]).on_error), "embedding objects", console=console()):
        if store.is_complete(record.key):
            counts["existing"] += 1
            continue
        image, size = read_image(record), image_size(record)
        masks = [decode_rle(each["segmentation"], size) for each in record.annotation["annotations"]]
        masks_AHW = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *size, dtype=torch.bool)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(clip.device)
        drawn = []
        for draw in range(settings.text_draws):
            generator = seeded_generator("cpu", config["seed"], draw, *record.key.encode())
            scale, zeroed = (each.to(clip.device) for each in draw_crops(text, len(masks), generator))
            drawn.append(clip.embed_objects(pixels, masks_AHW.to(clip.device), scale_N=scale, zeroed_N=zeroed))
        store.write(record.key, torch.stack(drawn, dim=1))
        counts["new"] += 1
    log.info("Embeddings of objects in %s: %d images new, %d existed already.", folder, counts["new"], counts["existing"])


def _images(config: Config, settings: EmbedConfig) -> list[Path]:
    """Returns the images below the folder, or those that the glob matches, sorted; raises ValueError for wrong settings."""
    for key, value in (("checkpoint", config["checkpoint"]), ("embed.images", settings.images)):
        if value is None:
            raise ValueError(f"{key} is null: task=embed needs checkpoint=FILE embed.images=FOLDER")
    images = str(settings.images)
    found = files_below(Path(images), IMAGES) if Path(images).is_dir() else map(Path, glob.glob(images, recursive=True))
    if paths := sorted(path for path in found if path.is_file()):
        return paths
    raise ValueError(
        f"embed.images is {images!r}, and no image was found there: give a folder of {', '.join(sorted(IMAGES))}, or a glob"
    )
