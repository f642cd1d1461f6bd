"""Stores the embeddings of a data set's objects, so that training need not run CLIP: one file per image.

A file is safetensors and holds `embeddings`, (A, D, E) float16, for the A annotations of a record and D random crops of each.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from samtrain.files import write_bytes
from samtrain.types import Batch

CURE = "free some disk space, or give another folder with embed.output"


class TextStore:
    """Reads and writes the embeddings in a folder; `clip` identifies the CLIP that they were computed with."""

    def __init__(self, folder: str | Path, clip: str | None = None) -> None:
        self.folder, self.clip = Path(folder), clip

    def path(self, key: str) -> Path:
        """Returns the file of the image with this key, which may hold any characters."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def write(self, key: str, embeddings_ADE: Tensor) -> None:
        """Writes the embeddings of one image, completely or not at all."""
        assert self.clip is not None, "a store that is written to needs to know its CLIP"
        content = save({"embeddings": embeddings_ADE.half().cpu()}, metadata={"key": key, "clip": self.clip})
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path(key), content, CURE)

    def read(self, key: str) -> Tensor:
        """Returns (A, D, E) float32; raises ValueError if the image has no file, or one of another CLIP."""
        if not self.path(key).is_file():
            raise ValueError(
                f"{self.folder} has no embeddings of the image {key} (text.embeddings): compute them with task=embed "
                "embed.text=true, or set text.embeddings=null"
            )
        with safe_open(self.path(key), framework="pt") as file:
            stored = (file.metadata() or {}).get("clip")
            if self.clip is not None and stored != self.clip:
                raise ValueError(
                    f"the embeddings in {self.folder} are of another CLIP (text.embeddings): compute them again with "
                    "task=embed embed.text=true, into another folder"
                )
            return file.get_tensor("embeddings").float()

    def is_complete(self, key: str) -> bool:
        """Returns whether the image has embeddings of this CLIP."""
        try:
            self.read(key)
        except ValueError:
            return False
        return True


class StoredCrops:
    """Looks the embeddings of a batch's objects up, one of their crops at random; see `CropEmbedder`."""

    def __init__(self, store: TextStore) -> None:
        self.store = store
        first = next(iter(sorted(store.folder.glob("*.safetensors"))), None) if store.folder.is_dir() else None
        if first is None:
            raise ValueError(f"text.embeddings is {store.folder}, which holds none: give the folder that task=embed wrote")
        with safe_open(first, framework="pt") as file:
            self.dim = int(file.get_slice("embeddings").get_shape()[2])

    def __call__(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Returns (N, E) float32 of length 1, on the batch's device; without a generator the first crop of each object."""
        rows = []
        for key, numbers in zip(batch.keys, batch.objects, strict=True):
            found_ADE = self.store.read(key)[numbers] if numbers else torch.zeros(0, 1, self.dim)
            draw = torch.zeros(len(numbers))
            if generator is not None:
                draw = torch.rand(len(numbers), generator=generator, device=generator.device).cpu()
            chosen = (draw * found_ADE.shape[1]).long()
            rows.append(found_ADE[torch.arange(len(numbers)), chosen])
        found_NE = F.normalize(torch.cat(rows), dim=-1).to(batch.masks.device)
        return found_NE if len(found_NE) else torch.zeros(len(batch.masks), self.dim, device=batch.masks.device)
