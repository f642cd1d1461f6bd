"""Stores image embeddings on disk, so that no image is encoded twice: one file per image, mapped when it is read.

A file is safetensors, which never executes code. It holds the tensor `embedding`, (1, C, g, g) or (T, C, g, g) for T tiles; its
header holds the digests of encoder and image, both sizes of the image, and the overlap of tiles. Files are written completely
or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from samtrain.files import write_bytes
from samtrain.inference.predictor import SamPredictor
from samtrain.inference.tiled import TiledPredictor
from samtrain.inference.transforms import as_rgb
from samtrain.modeling.sam import Sam
from samtrain.types import Size

log = logging.getLogger(__name__)

HEADER = "image_embedding"  # the entry of a file's metadata that holds its `Header`
FORMAT = 2  # to be raised when the file format changes, or when the same image and weights give another embedding
# fields of SamConfig that change the embedding and cannot be seen in any weight
ENCODER_SETTINGS = ("image_size", "patch_size", "encoder_heads", "window_size", "global_attn_indexes")
_ENCODERS: WeakKeyDictionary[Sam, tuple[list, str]] = WeakKeyDictionary()  # a model's weights when last seen, and their digest


class EmbeddingStore:
    """Stores image embeddings in a folder and finds them by the image's pixels and the encoder's weights.

    File names of images and models do not matter. Several models can share the folder: each encoder has a subfolder, which
    stays valid while only the decoder is trained. Several processes can share it, too: if two of them encode the same image,
    both write the same complete file.

    Args:
        folder: the folder; it is created when the first embedding is written.
        round_to_half: keep float16, half the size; otherwise float32, with which predictions equal those of `set_image`.
    """

    def __init__(self, folder: str | Path, *, round_to_half: bool = True) -> None:
        self.folder = Path(folder)
        self.round_to_half = round_to_half

    def set_image(self, predictor: SamPredictor, image: np.ndarray, image_format: str = "RGB") -> bool:
        """Sets the predictor's image from the stored embedding, or encodes the image and stores it.

        In both cases the predictor gets the stored embedding, rounded by default, so that its predictions do not depend on who
        encoded the image. A file that cannot be used is logged and overwritten.

        Args:
            predictor: the predictor that gets the image.
            image: (H, W, 3) uint8.
            image_format: "RGB" or "BGR".

        Returns:
            True if the embedding was found, False if the image was encoded.

        Raises:
            ValueError: for another array or format, and for a model in training mode.
            OSError: if the disk is full.
        """
        image = as_rgb(image, image_format)
        digest = image_digest(image)
        path = self.path(predictor.model, digest)
        if (overlap := _overlap_of(predictor)) is not None:
            path = path.with_name(f"{path.stem}_tiles_{overlap:g}{path.suffix}")
        if path.is_file():
            try:
                load_embedding(predictor, path, digest=digest)
                return True
            except ValueError as error:
                log.warning("%s. The file is overwritten.", error)
        predictor.set_image(image)
        save_embedding(predictor, path, digest=digest, round_to_half=self.round_to_half)
        load_embedding(predictor, path, digest=digest)
        return False

    def path(self, model: Sam, digest: str) -> Path:
        """Returns the path of this model's embedding for the image with this `image_digest`."""
        # half a digest is enough to tell images apart; the header holds all of it
        return self.folder / encoder_digest(model)[:32] / f"{digest[:32]}.safetensors"


@dataclass(frozen=True)
class Header:
    """Identifies the embedding in a file; `image` is None if the digest was not given to `save_embedding`."""

    encoder: str
    image: str | None
    original_size: Size
    input_size: Size
    format: int = FORMAT
    overlap: float | None = None  # of the tiles; None: the image is not cut into tiles


def save_embedding(
    predictor: SamPredictor, path: str | Path, *, digest: str | None = None, round_to_half: bool = True
) -> Path:
    """Writes the embedding of the predictor's image, completely or not at all.

    The embedding is rounded to float16, or kept in float32 if that is asked for, or if a number exceeds float16's largest,
    65504.

    Args:
        predictor: the predictor; its image must be set.
        path: the file to write, usually with the ending `.safetensors`.
        digest: the image's `image_digest`, which `load_embedding` can compare.
        round_to_half: keep float16, half the size of float32.

    Returns:
        The path.

    Raises:
        ValueError: for a model in training mode.
        OSError: if the disk is full.
        RuntimeError: before `set_image`.
    """
    embedding = predictor.get_image_embedding().detach().float().cpu().contiguous()
    if predictor.model.image_encoder.training:
        raise ValueError("the model is in training mode, where drop path makes each embedding different: call sam.eval()")
    half = embedding.half()
    fits = torch.equal(half.isfinite(), embedding.isfinite())
    tensors = {"embedding": half if round_to_half and fits else embedding}
    header = Header(
        encoder=encoder_digest(predictor.model),
        image=digest,
        original_size=predictor.original_size,
        input_size=predictor.input_size,
        overlap=_overlap_of(predictor),
    )
    # a single metadata entry, because several have no fixed order; written by Python, because save_file ignores a full disk
    content = save(tensors, {HEADER: json.dumps(asdict(header))})
    path = Path(path)
    write_bytes(path, content, "free some disk space and try again: what is already written stays")
    return path


def load_embedding(predictor: SamPredictor, path: str | Path, *, digest: str | None = None) -> None:
    """Sets the predictor's image from a file that `save_embedding` wrote; the image itself is not needed.

    Args:
        predictor: the predictor; it stays unchanged if the file cannot be used.
        path: the file.
        digest: the `image_digest` that the file should have; None accepts any image.

    Raises:
        ValueError: for a file that is missing, cut short or not an embedding, and for one of another encoder, format, frame or
            image.
    """
    path = Path(path)
    header, embedding = _read(path)
    if problem := _problem(header, embedding, predictor, digest):
        raise ValueError(f"{path} {problem}: encode the image again with set_image(image), then save_embedding")
    predictor.set_image_embedding(embedding, header.original_size, header.input_size)


def _read(path: Path) -> tuple[Header, Tensor]:
    """Returns the header and the embedding of a file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: save_embedding(predictor, path) writes one")
    try:
        with safe_open(path, framework="pt") as file:  # maps the file and checks that it is complete
            return Header(**json.loads((file.metadata() or {})[HEADER])), file.get_tensor("embedding")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as an image embedding. It may be cut short or of another program or version: encode the "
            f"image again with set_image(image), then save_embedding ({error})"
        ) from error


def _overlap_of(predictor: SamPredictor) -> float | None:
    """Returns the overlap of the predictor's tiles, or None if it resizes images."""
    return predictor.overlap if isinstance(predictor, TiledPredictor) else None


def _problem(header: Header, embedding: Tensor, predictor: SamPredictor, digest: str | None) -> str | None:
    """Returns why a file cannot be used for this predictor and image, or None if it can."""
    shape, overlap = predictor.embedding_shape(header.original_size), _overlap_of(predictor)
    if header.format != FORMAT:
        return f"has format {header.format}, but this version of samtrain reads and writes format {FORMAT}"
    if header.encoder != encoder_digest(predictor.model):
        return "was made by another image encoder than this model's"
    if header.overlap != overlap:
        there, here = (
            "the resized image" if each is None else f"tiles with an overlap of {each:g}" for each in (header.overlap, overlap)
        )
        return f"holds the embedding of {there}, but this predictor works on {here}"
    if digest not in (None, header.image):
        return "is of another image"
    if embedding.shape != shape or embedding.dtype not in (torch.float16, torch.float32):
        return f"holds {tuple(embedding.shape)} {embedding.dtype}, but an embedding of this model is {shape} float16"
    return None


def image_digest(image: np.ndarray) -> str:
    """Returns the sha256 digest of shape and pixels of an (H, W, 3) uint8 RGB image."""
    state = hashlib.sha256(repr(tuple(image.shape)).encode())
    state.update(np.ascontiguousarray(image).data)
    return state.hexdigest()


def encoder_digest(model: Sam) -> str:
    """Returns the sha256 digest of everything that turns images into embeddings: the encoder's weights and settings.

    It is computed once per model, and again after its weights have changed.
    """
    tensors = {**model.image_encoder.state_dict(), "mean": model.pixel_mean, "std": model.pixel_std}
    # changes through `.data` do not count as a version, so the first number of each tensor is compared as well
    weights = [(tensor.data_ptr(), tensor._version, tensor.flatten()[0].item()) for tensor in tensors.values()]
    known = _ENCODERS.get(model)
    if known is None or known[0] != weights:
        settings = [getattr(model.config, name) for name in ENCODER_SETTINGS]
        state = hashlib.sha256(repr(settings).encode())
        for name, tensor in tensors.items():
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.cpu().flatten().view(torch.uint8).numpy())
        _ENCODERS[model] = known = weights, state.hexdigest()
    return known[1]
