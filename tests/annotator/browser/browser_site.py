"""A server with `DiscSam` for the tests of the annotation page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from disc_sam import load_disc_sam
from PIL import Image

import samtrain
from samtrain.annotator import encoding
from samtrain.annotator.config import AnnotateConfig, ServeConfig
from samtrain.annotator.serve import Server
from samtrain.annotator.store import Model, NewImage, Store, Work

STATIC = Path(samtrain.__file__).parent / "annotator" / "static"
GREY = (110, 110, 110)
SIZE = (480, 640)  # (H, W) of the tests' images


class Site:
    """A server with `DiscSam`, to which tests add images."""

    def __init__(self, folder: Path, settings: AnnotateConfig) -> None:
        self.folder, self.number = folder, 0
        url = f"sqlite:///{folder / 'annotations.db'}"
        self.server = Server(ServeConfig(annotate=settings, store=url, embeddings=str(folder / "embeddings")))

    @property
    def store(self) -> Store:
        return self.server.store

    @property
    def url(self) -> str:
        return self.server.url

    def use_model(self, radius: int = 24) -> None:
        self.store.set_model(
            Model(str(self.folder / f"discs_{radius}"), f"digest-{radius}", f"discs of {radius}", {"val/miou_1": 0.71})
        )

    def add_image(self, pixels: np.ndarray | None = None, *, rank: float = 0.0, round: int | None = None) -> int:
        """Adds an image, grey unless it is given, and returns its id; a higher rank is handed out later."""
        self.number += 1
        path = self.folder / f"image_{self.number}.png"
        Image.fromarray(np.full((*SIZE, 3), GREY, np.uint8) if pixels is None else pixels).save(path, compress_level=1)
        height, width = SIZE if pixels is None else pixels.shape[:2]
        image = NewImage(key=path.stem, name=path.name, source=str(path), width=width, height=height, rank=rank, round=round)
        return self.store.add_images([image])[0].id


def start_site(folder: Path, settings: AnnotateConfig | None = None) -> Iterator[Site]:
    """Yields a running site; the model is loaded by `load_disc_sam`."""
    real, encoding.load_sam = encoding.load_sam, load_disc_sam  # type: ignore[assignment]
    try:
        site = Site(folder, replace(settings or AnnotateConfig(annotator="anna", prefetch=0), port=0))
        site.use_model()
        site.store.set_work(Work("annotate"))
        with site.server:
            yield site
    finally:
        encoding.load_sam = real
