"""`task=embed`: encodes images ahead of time; `EmbeddingStore` then finds their embeddings by their pixels."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from samtrain.data.decode import decode_shown
from samtrain.data.prepare.mask_files import IMAGES, files_below
from samtrain.inference.embeddings import EmbeddingStore
from samtrain.inference.frames import make_predictor
from samtrain.modeling.build import load_sam
from samtrain.run.build import device_of
from samtrain.run.image_sets import asked_frame, data_config
from samtrain.run.settings import Config, read
from samtrain.terminal import console

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """The `embed` node: a folder or glob of images, and the folder for their embeddings (None: in the run's directory)."""

    images: str | None
    output: str | None


def run(config: Config, run_dir: Path) -> None:
    """Writes the embedding of each image that has none in `embed.output` yet; after a kill the same command resumes."""
    settings = read(EmbedConfig, config, "embed")
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
