"""Predicts at the image's own scale, for models trained on crops of native pixels (nuclei, remote sensing)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samtrain.inference.predictor import ImageDecoder, SamPredictor, as_float32, chunks, concatenated
from samtrain.inference.transforms import ResizeLongestSide, as_rgb
from samtrain.modeling.sam import Sam
from samtrain.types import PointLabel, Prompts, SamOutput, Size

DISTANCES_AT_A_TIME = 1 << 22  # from clicks to tiles, computed together: 64 MiB
OUTSIDE_LOGIT = -32.0  # beyond the tile, certainly no mask; SAM 2's predictor clamps its logits to this value


class NativeScale(ResizeLongestSide):
    """Leaves images and prompts as they are: the input frame is the original frame."""

    def size(self, original_size: Size) -> Size:
        return original_size

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.array(image, order="C")  # torch takes no negative strides

    def apply_image_torch(self, image: Tensor) -> Tensor:
        return image


class TiledPredictor(SamPredictor):
    """Cuts the image into overlapping S x S tiles and predicts each object in the tile where it is most central.

    An object's tile follows from the centre of its box or from its first click, and stays the same for all later clicks,
    because low-resolution logits are in the tile's frame. Tiles are encoded when they are first needed. Nothing beyond the tile
    belongs to the mask, so objects larger than S pixels are cut off; clicks beyond the tile are ignored and boxes are clipped
    to it. An image smaller than S is padded at the bottom and on the right. The input frame of `predict_torch` is the original
    frame.
    Methods and frames are those of `SamPredictor`, but the embedding of an image is (T, C, g, g), that of its T tiles.
    `SamPredictor` itself makes this class for a model with "native" as its frame.

    Args:
        sam_model: the model, in evaluation mode, on any device.
        overlap: share of a tile that neighbouring tiles have in common, from 0 to below 1. With 0.5 an object of S / 2 pixels
            fits into one of them completely.
        tiles_per_batch: tiles encoded together.

    Raises:
        ValueError: for an overlap out of range.
    """

    takes_text = False  # a text has no place, from which the tile would follow

    def __init__(self, sam_model: Sam, *, overlap: float = 0.5, tiles_per_batch: int = 4) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap is {overlap}: use a share of the tile from 0 to below 1")
        super().__init__(sam_model)
        self.transform = NativeScale(sam_model.config.image_size)
        self.overlap = overlap
        self.tiles_per_batch = tiles_per_batch

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Cuts an (H, W, 3) uint8 image into tiles; raises ValueError for another array or format. Nothing is encoded yet."""
        image = as_rgb(image, image_format)
        self.reset_image()
        self._set_size((image.shape[0], image.shape[1]))
        self.image = torch.as_tensor(np.array(image)).permute(2, 0, 1)
        self.is_image_set = True

    def _set_size(self, original_size: Size) -> None:
        """Lays the tiles over an image of this size."""
        side = self.model.config.image_size
        self.original_size = original_size
        self.input_size = (min(side, original_size[0]), min(side, original_size[1]))
        self.tiles = torch.tensor(tile_corners(original_size, side, self.overlap), device=self.device)

    def set_torch_image(self, transformed_image: Tensor, original_image_size: Size) -> None:
        """Raises RuntimeError: a tiled image has no single input frame."""
        raise RuntimeError("a TiledPredictor works at the image's own scale: use set_image")

    def set_image_embedding(self, embedding: Tensor, original_size: Size, input_size: Size | None = None) -> None:
        """Sets an image by the embeddings of its tiles, without encoding anything.

        Args:
            embedding: (T, C, g, g) from `get_image_embedding` of a predictor with the same overlap.
            original_size: (H, W) of the image as stored.
            input_size: is not used, because a tile has the pixels of the image.

        Raises:
            ValueError: for an embedding of another shape than this image's.
        """
        size = (int(original_size[0]), int(original_size[1]))
        if embedding.shape != (shape := self.embedding_shape(size)):
            raise ValueError(f"the tiles of an image of {size} have embeddings {shape}, got {tuple(embedding.shape)}")
        self.reset_image()
        self._set_size(size)
        self.features = dict(enumerate(embedding.to(self.device, self.model.pixel_mean.dtype)))
        self.is_image_set = True

    def embedding_shape(self, original_size: Size) -> tuple[int, int, int, int]:
        config = self.model.config
        num_tiles = len(tile_corners(original_size, config.image_size, self.overlap))
        return num_tiles, config.prompt_dim, config.grid, config.grid

    def get_image_embedding(self) -> Tensor:
        """Returns the embeddings (T, C, g, g) of all tiles, encoding those that are missing."""
        self._check_image_set()
        return self.encode_tiles(list(range(len(self.tiles))))

    def reset_image(self) -> None:
        """Forgets the image and its tiles."""
        super().reset_image()
        self.features = {}  # the embedding (C, g, g) of each tile that was encoded, by its number
        self.image = torch.empty(3, 0, 0, dtype=torch.uint8)

    def answer_in_frame(self, prompts: Prompts, multimask_output: bool) -> tuple[Tensor, SamOutput]:
        """Returns (N, M, H, W) logits in the original frame, and the decoder's output in each object's tile."""
        if prompts.labels.shape[1] == 0 and len(self.tiles) > 1:
            raise ValueError("a mask alone does not show which tile it belongs to: give its click or box as well")
        # in `predict` the first click is the first token
        tiles_N = self.tile_of(_anchors(prompts, first=0))
        output = self.answer_in(tiles_N, prompts, multimask_output)
        return self.paste(tiles_N, output.low_res_logits), output

    def decoder(self, *, points_per_batch: int = 64) -> TiledDecoder:
        """Returns the decoder that `interact` takes, with prompts and masks in the original frame."""
        return TiledDecoder(self, points_per_batch=points_per_batch)

    def tile_of(self, anchors_N2: Tensor) -> Tensor:
        """Returns (N,), the tile with its centre nearest to each point, by the larger of the distances along x and y."""
        return most_central_tile(anchors_N2, self.tiles, self.input_size)

    @torch.no_grad()
    def encode_tiles(self, indices: list[int]) -> Tensor:
        """Returns (T, C, g, g), the embeddings of some tiles; each tile is encoded once per image."""
        side, (height, width) = self.model.config.image_size, self.input_size
        missing = [index for index in indices if index not in self.features]
        for chunk in chunks(len(missing), self.tiles_per_batch):
            corners = [self.tiles[index].tolist() for index in missing[chunk]]
            if corners:
                crops = torch.stack([self.image[:, y : y + height, x : x + width] for x, y in corners]).to(self.device)
                sizes = torch.tensor([self.input_size] * len(corners), device=self.device)
                padded = F.pad(crops, (0, side - width, 0, side - height))
                # autocast gives another type than that of the weights
                embeddings = self.model.encode(self.model.preprocess(padded, sizes)).to(self.model.pixel_mean.dtype)
                self.features.update(zip(missing[chunk], embeddings, strict=True))
        return torch.stack([self.features[index] for index in indices])

    @torch.no_grad()
    def answer_in(self, tiles_N: Tensor, prompts: Prompts, multimask_output: bool) -> SamOutput:
        """Returns the decoder's output for prompts in the original frame, each decoded in its tile."""
        needed, owner_N = tiles_N.unique(return_inverse=True)
        embeddings = self.encode_tiles(needed.tolist() or [0])
        return as_float32(self.model.decode(embeddings, owner_N, self._in_tile(tiles_N, prompts), multimask_output))

    @torch.no_grad()
    def paste(self, tiles_N: Tensor, low_res_logits_NMhw: Tensor) -> Tensor:
        """Returns (N, M, H, W) logits in the original frame, OUTSIDE_LOGIT beyond each object's tile."""
        height, width = self.input_size
        frame = low_res_logits_NMhw.new_full((*low_res_logits_NMhw.shape[:2], *self.original_size), OUTSIDE_LOGIT)
        # equal sizes, because a tile has the pixels of the image
        logits = self.model.postprocess_masks(low_res_logits_NMhw, self.input_size, self.input_size)
        for row, (x, y) in enumerate(self.tiles[tiles_N].tolist()):
            frame[row, :, y : y + height, x : x + width] = logits[row]
        return frame

    def _in_tile(self, tiles_N: Tensor, prompts: Prompts) -> Prompts:
        """Returns the prompts in their tiles' frames; boxes are clipped to the tile, clicks beyond it become padding."""
        limits = torch.tensor([self.input_size[1] - 1, self.input_size[0] - 1], device=self.device)
        coords = prompts.coords - self.tiles[tiles_N][:, None]
        clipped = coords.clamp(min=0).minimum(limits.to(coords.dtype))
        is_box = prompts.labels >= PointLabel.BOX_TOP_LEFT
        # up to half a pixel beyond the tile still belongs to its last pixel
        unseen = ~is_box & ((coords - clipped).abs() > 0.5).any(dim=2)
        labels = prompts.labels.masked_fill(unseen, int(PointLabel.PADDING))
        return replace(prompts, coords=torch.where(is_box[..., None], clipped, coords), labels=labels)


class TiledDecoder(ImageDecoder):
    """Answers prompts on a tiled image; an object's tile follows from its first prompt, the last of its tokens."""

    predictor: TiledPredictor

    def decode(self, prompts: Prompts, multimask_output: bool) -> SamOutput:
        """Returns low-resolution masks, in each object's tile, for prompts in the original frame."""
        device = self.predictor.device
        prompts = replace(prompts, coords=prompts.coords.to(device), labels=prompts.labels.to(device))
        self.tiles_N = self.predictor.tile_of(_anchors(prompts, first=-1))
        rows = chunks(len(prompts), self.points_per_batch)
        return concatenated(
            [self.predictor.answer_in(self.tiles_N[row], prompts.select(row), multimask_output) for row in rows]
        )

    def to_frame(self, low_res_logits_N1hw: Tensor) -> Tensor:
        """Returns (N, 1, H, W) logits in the original frame, for the objects of the last `decode`."""
        N, M = low_res_logits_N1hw.shape[:2]
        assert len(self.tiles_N) == N, f"{N} masks for the {len(self.tiles_N)} objects decoded last"
        frame = low_res_logits_N1hw.new_empty(N, M, *self.predictor.original_size)
        for row in chunks(N, self.points_per_batch):
            frame[row] = self.predictor.paste(self.tiles_N[row], low_res_logits_N1hw[row])
        return frame


def tile_corners(size: Size, side: int, overlap: float) -> list[tuple[int, int]]:
    """Returns x and y of the top left pixel of each tile of an image of `size` (H, W), row by row."""
    rows, columns = (_tile_starts(length, side, overlap) for length in size)
    return [(x, y) for y in rows for x in columns]


def most_central_tile(points_N2: Tensor, tiles_T2: Tensor, tile_size: Size) -> Tensor:
    """Returns (N,) int64, the tile with its centre nearest to each point, by the larger of the distances along x and y."""
    centres_T2 = tiles_T2 + torch.tensor([(tile_size[1] - 1) / 2, (tile_size[0] - 1) / 2], device=tiles_T2.device)
    # a few points at a time: a large image has thousands of tiles and a hundred thousand clicks
    parts = points_N2.split(max(DISTANCES_AT_A_TIME // len(centres_T2), 1))
    return torch.cat([(part[:, None] - centres_T2).abs().amax(dim=2).argmin(dim=1) for part in parts])


def _tile_starts(length: int, side: int, overlap: float) -> list[int]:
    """Returns the first pixel of each tile along one axis: as few tiles as the overlap allows, evenly spread."""
    if length <= side:
        return [0]
    count = math.ceil((length - side) / (side * (1 - overlap))) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def _anchors(prompts: Prompts, first: int) -> Tensor:
    """Returns (N, 2), the centre of an object's box, else its first click, which is at token `first` (0 or -1)."""
    coords, labels = prompts.coords, prompts.labels
    N, K = labels.shape
    if K == 0:
        return coords.new_zeros(N, 2)
    # the first token that is a click
    order = torch.arange(K, device=labels.device) if first == 0 else torch.arange(K - 1, -1, -1, device=labels.device)
    is_click = (labels == PointLabel.BACKGROUND) | (labels == PointLabel.FOREGROUND)
    place = torch.where(is_click, order, K).argmin(dim=1)
    click = coords.gather(1, place[:, None, None].expand(-1, 1, 2))[:, 0]
    # the middle of the box's two corners
    is_corner = (labels >= PointLabel.BOX_TOP_LEFT)[..., None]
    centre = (coords * is_corner).sum(dim=1) / 2
    return torch.where(is_corner.any(dim=1), centre, click)
