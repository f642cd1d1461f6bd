"""A running server with a few small images and a tiny model, and a client that speaks JSON with it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from samtrain.annotator.config import AnnotateConfig, ServeConfig
from samtrain.annotator.serve import Server
from samtrain.annotator.store import Model, NewImage, Store, open_store
from samtrain.files import digest
from samtrain.modeling.build import build_sam
from samtrain.modeling.checkpoints import save_safetensors

SIZE = (48, 64)  # of the images (H, W)


def write_checkpoint(path: Path, *, seed: int = 0, **settings: Any) -> Path:
    """A vit_tiny with random weights."""
    torch.manual_seed(seed)
    return save_safetensors(build_sam("vit_tiny", **{"image_size": 64, **settings}), path)


def model_of(path: Path) -> Model:
    return Model(path=str(path), digest=digest(path), name=path.name, metrics={"val/miou_1": 0.5})


def pixels_of(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The pixels of one of the images."""
    return np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)


def write_images(folder: Path, count: int, size: tuple[int, int] = SIZE) -> list[NewImage]:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        path = folder / f"image_{number}.png"
        Image.fromarray(pixels_of(number, size)).save(path)
        about = {"width": size[1], "height": size[0], "digest": digest(path), "rank": float(number)}
        found.append(NewImage(key=path.name, name=path.name, source=str(path), **about))
    return found


@contextmanager
def serving(
    folder: Path, *, images: int = 3, checkpoint: Path | None = None, tokens: bool = False, **annotate: Any
) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server on a new store, and the tokens of its annotators by name."""
    folder.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{folder / 'annotations.db'}"
    found = {}
    with open_store(url) as store:
        store.add_images(write_images(folder / "images", images))
        store.set_model(model_of(checkpoint or write_checkpoint(folder / "sam.safetensors")))
        if tokens:
            found = {name: store.add_annotator(name) for name in ("anna", "ben")}
    settings = AnnotateConfig(**{"port": 0, "annotator": "me", "prefetch": 0, **annotate})
    with Server(ServeConfig(annotate=settings, store=url, embeddings=str(folder / "embeddings"))) as server:
        yield server, found


class Client:
    """Sends requests exactly as they are given, as an attacker would."""

    def __init__(self, server: Server, token: str | None = None) -> None:
        self.port = int(server.url.rpartition(":")[2])
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def raw(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        """The answer's status, headers and bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def __call__(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """The answer's status and its JSON."""
        data = None if body is None and method in ("GET", "DELETE") else json.dumps({} if body is None else body).encode()
        content = {} if data is None else {"Content-Type": "application/json"}
        status, _, answer = self.raw(method, path, data, {**content, **(headers or {})})
        return status, json.loads(answer) if answer else None


def add(store: Store, folder: Path, count: int, size: tuple[int, int]) -> list[int]:
    """Adds images of another size; returns their ids."""
    return [row.id for row in store.add_images(write_images(folder, count, size))]
