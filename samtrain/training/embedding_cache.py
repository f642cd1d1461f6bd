"""Keeps the embeddings of a frozen image encoder on disk, so that a training encodes no image twice."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from samtrain.files import write_bytes
from samtrain.inference.embeddings import FORMAT, encoder_digest
from samtrain.modeling.sam import Sam

log = logging.getLogger(__name__)

CURE = "free some disk space, or write to another disk with data_dir: what is already written stays"


class EmbeddingCache:
    """Finds embeddings by the pixels that the encoder sees, its weights and its settings: a file per image.

    Names of images and of checkpoints do not matter, so that trainings that share the frozen encoder share the folder, and no
    changed file of either kind gives an old embedding. Several processes may write to it.

    Args:
        folder: the folder; each encoder has its own below it.
        dtype: float16 takes half the space; with float32 a training equals one without the cache to the bit.
    """

    def __init__(self, folder: str | Path, dtype: torch.dtype) -> None:
        self.folder, self.dtype = Path(folder), dtype
        self._of_encoder: Path | None = None  # known from the first image on, because a frozen encoder keeps its weights

    def get(self, sam: Sam, image_3SS: Tensor, input_size: Tensor, encode: Callable[[], Tensor]) -> Tensor:
        """Returns the embedding (1, C, g, g) of an image of a batch on its device, in float32; encodes and stores a new one."""
        path = self._path(sam, image_3SS, input_size)
        if path.is_file():
            try:
                return load_file(path)["embedding"].to(image_3SS.device, torch.float32)
            except (SafetensorError, KeyError) as error:
                log.warning("%s cannot be read as an embedding and is overwritten (%s).", path, error)
        stored = encode().to("cpu", self.dtype).contiguous()
        if not stored.isfinite().all():
            raise ValueError(
                f"an embedding does not fit into {self.dtype}, or the encoder gave numbers that are not finite: set "
                "trainer.cache_embeddings=float32 or null"
            )
        write_bytes(path, save({"embedding": stored}), CURE)
        # what is stored, so that it does not matter who encoded the image
        return stored.to(image_3SS.device, torch.float32)

    def _path(self, sam: Sam, image_3SS: Tensor, input_size: Tensor) -> Path:
        if self._of_encoder is None:
            # embeddings differ by the precision that they were computed in
            kind = image_3SS.device.type
            computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
            names = "_".join(str(each).removeprefix("torch.") for each in (computed, self.dtype))
            self._of_encoder = self.folder / f"{encoder_digest(sam)[:32]}_{names}_v{FORMAT}"
        state = hashlib.sha256(repr((tuple(image_3SS.shape), input_size.tolist())).encode())
        state.update(image_3SS.cpu().contiguous().numpy().data)
        return self._of_encoder / f"{state.hexdigest()[:32]}.safetensors"
