"""Image embeddings kept on disk, so that an image is encoded once ever: a file an image, float16, mapped when read.

A file is safetensors, from which nothing runs: the tensor `embedding` (1, C, g, g), and in the header whose it is, the
encoder's digest and the image's, and both sizes of the image. It gets its name when it is whole.
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
from samtrain.inference.predictor import SamPredictor, Size, as_rgb
from samtrain.modeling.sam import Sam

log = logging.getLogger(__name__)

HEADER = "image_embedding"  # where a file carries its `Header`
FORMAT = 2  # raise it when a file gets another form, or the same image and weights another embedding
# what of a SamConfig an embedding depends on and no weight's shape shows
ENCODER_SETTINGS = ("image_size", "patch_size", "encoder_heads", "window_size", "global_attn_indexes")
_ENCODERS: WeakKeyDictionary[Sam, tuple[list, str]] = WeakKeyDictionary()  # a model's weights as last seen, their digest


class EmbeddingStore:
    """A folder of embeddings, found by the image's pixels and the encoder's weights, whatever either is called.

    Models share it: each encoder has a folder of its own in it, and keeps it while the decoder goes on learning. So do
    processes: two that embed one image write the same file twice, each time whole.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def set_image(self, predictor: SamPredictor, image: np.ndarray, image_format: str = "RGB") -> bool:
        """`predictor.set_image`, from disk where the folder has the image; else it is encoded and written.

        Returns whether it was there. Either way the predictor gets what the disk has, so that an image's answers stay
        the same. A file that cannot be used is logged and written anew: its name says what belongs in it, so nothing
        else is lost. Raises as `predictor.set_image` and `save_embedding`.
        """
        image = as_rgb(image, image_format)
        digest = image_digest(image)
        path = self.path(predictor.model, digest)
        if path.is_file():
            try:
                load_embedding(predictor, path, digest=digest)
                return True
            except ValueError as error:
                log.warning("%s; it is written anew", error)
        predictor.set_image(image)
        save_embedding(predictor, path, digest=digest)
        load_embedding(predictor, path, digest=digest)
        return False

    def path(self, model: Sam, digest: str) -> Path:
        """Where this model's embedding of the image of an `image_digest` lies, or would."""
        # half a digest tells all images of the world apart; the header has it whole
        return self.folder / encoder_digest(model)[:32] / f"{digest[:32]}.safetensors"


@dataclass(frozen=True)
class Header:
    """Whose embedding a file holds; `image` is None where whoever wrote it did not say."""

    encoder: str
    image: str | None
    original_size: Size
    input_size: Size
    format: int = FORMAT


def save_embedding(predictor: SamPredictor, path: str | Path, *, digest: str | None = None) -> Path:
    """Writes the embedding of the image that is set, whole or not at all; `digest` is its `image_digest`.

    It is rounded to float16, or kept as float32 where a number is beyond float16's 65504. Raises ValueError for a model
    in training mode, OSError where the disk is full, RuntimeError before `set_image` and for a `TiledPredictor`.
    """
    embedding = predictor.get_image_embedding().detach().float().cpu().contiguous()
    if predictor.model.image_encoder.training:
        raise ValueError("the model is in training mode, where drop path makes every embedding another: call sam.eval()")
    half = embedding.half()
    tensors = {"embedding": half if torch.equal(half.isfinite(), embedding.isfinite()) else embedding}
    header = Header(encoder_digest(predictor.model), digest, predictor.original_size, predictor.input_size)
    # one entry, for their order is by chance; written by Python, for save_file says nothing of a full disk
    content = save(tensors, {HEADER: json.dumps(asdict(header))})
    path = Path(path)
    cure = "free some disk space and do the same again: what is already written stays"
    write_bytes(path, content, cure)
    return path


def load_embedding(predictor: SamPredictor, path: str | Path, *, digest: str | None = None) -> None:
    """Sets the image whose embedding `save_embedding` wrote; the image itself is not needed.

    Raises ValueError, and leaves the predictor as it was, for a file that is missing, cut or no embedding, that another
    encoder made or another format has, or that is not of the image of `digest` where that is given; RuntimeError for a
    `TiledPredictor`.
    """
    path = Path(path)
    header, embedding = _read(path)
    if problem := _problem(header, embedding, predictor.model, digest):
        raise ValueError(f"{path} {problem}: encode the image anew, set_image(image), then save_embedding")
    predictor.set_image_embedding(embedding, header.original_size, header.input_size)


def _read(path: Path) -> tuple[Header, Tensor]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}: save_embedding(predictor, path) writes one")
    try:
        with safe_open(path, framework="pt") as file:  # maps it, and has seen that it is whole
            return Header(**json.loads((file.metadata() or {})[HEADER])), file.get_tensor("embedding")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as an image embedding: cut short, or another program's or version's? Encode the "
            f"image anew: set_image(image), then save_embedding ({error})"
        ) from error


def _problem(header: Header, embedding: Tensor, model: Sam, digest: str | None) -> str | None:
    """Why a file cannot stand for this image's embedding by this model; None where it can."""
    shape = (1, model.config.prompt_dim, model.config.grid, model.config.grid)
    if header.format != FORMAT:
        return f"has format {header.format}, this version of samtrain writes and reads {FORMAT}"
    if header.encoder != encoder_digest(model):
        return "was made by another image encoder than this model's"
    if digest not in (None, header.image):
        return "is of another image"
    if embedding.shape != shape or embedding.dtype not in (torch.float16, torch.float32):
        return f"holds {tuple(embedding.shape)} {embedding.dtype}, an embedding of this model is {shape} float16"
    return None


def image_digest(image: np.ndarray) -> str:
    """The name of an (H, W, 3) uint8 RGB image: sha256 of its shape and pixels."""
    state = hashlib.sha256(repr(tuple(image.shape)).encode())
    state.update(np.ascontiguousarray(image).data)
    return state.hexdigest()


def encoder_digest(model: Sam) -> str:
    """The name of what maps images to embeddings: sha256 of the encoder's weights to the bit, and of its settings.

    Computed once for a model, and again once its weights are others.
    """
    tensors = {**model.image_encoder.state_dict(), "mean": model.pixel_mean, "std": model.pixel_std}
    # writing through `.data` counts no version, so a number of each is looked at
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
