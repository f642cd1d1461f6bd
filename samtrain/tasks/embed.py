"""`task=embed`: images are encoded before anybody asks; `EmbeddingStore` finds them by their pixels."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from pathlib import Path

from rich.progress import track

from samtrain.data.decode import decode_shown
from samtrain.data.prepare.mask_files import IMAGES, files_below
from samtrain.data.tar_index import check_on_error
from samtrain.inference.embeddings import EmbeddingStore
from samtrain.inference.predictor import SamPredictor
from samtrain.modeling.build import load_sam
from samtrain.run.build import Config, device_of
from samtrain.terminal import console

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> None:
    """Write an embedding of each image of `embed.images` that `embed.output` has none of; killed, it goes on there."""
    _check(config)
    paths = _images(config["embed"]["images"])
    store = EmbeddingStore(config["embed"]["output"] or run_dir / "embeddings")
    predictor = SamPredictor(load_sam(config["checkpoint"]).to(device_of(config)))
    counts: Counter[str] = Counter()
    for path in track(paths, "embedding images", console=console(), disable=not console().is_terminal):
        try:
            image = decode_shown(path.read_bytes(), str(path))
        except ValueError as error:
            if config["data"]["on_error"] == "raise":
                raise
            log.warning("left out: %s", error)
            counts["left out"] += 1
            continue
        counts["there"] += store.set_image(predictor, image)
    new = len(paths) - counts.total()
    log.info("%s: %d images new, %d there already, %d left out", store.folder, new, counts["there"], counts["left out"])


def _check(config: Config) -> None:
    checkpoint, data = config["checkpoint"], config["data"]
    if checkpoint is None or config["embed"]["images"] is None:
        key = "checkpoint" if checkpoint is None else "embed.images"
        raise ValueError(f"{key} is null: task=embed needs checkpoint=FILE embed.images=FOLDER")
    if data["frame"] == "native":
        raise ValueError("data.frame is native, whose tiles are encoded when clicked: task=embed needs data.frame=resize")
    check_on_error(data["on_error"])


def _images(images: str) -> list[Path]:
    """The images below a folder, or the files of a glob, in the order of names."""
    found = files_below(Path(images), IMAGES) if Path(images).is_dir() else map(Path, glob.glob(images, recursive=True))
    if paths := sorted(path for path in found if path.is_file()):
        return paths
    raise ValueError(f"embed.images is {images!r}, where no image is ({', '.join(sorted(IMAGES))} in a folder)")
