"""A SAM without a network: a click gives the region of its colour, at three tolerances. Its masks are real ones, so that NMS,
crops and clean-up have something to do; both our generator and segment_anything's can be given it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrain.modeling import SAM_CONFIGS, Sam
from samtrain.types import Prompts, SamOutput

CONFIG = replace(SAM_CONFIGS["vit_tiny"], image_size=256, patch_size=16)  # masks of 64 x 64
TOLERANCES = (8.137, 20.371, 45.713)  # of 0 to 255


def answer(features_BChw: Tensor, owner_N: Tensor, coords_N2: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3, h, w) logits and (N, 3) predicted IoU for clicks in the input frame."""
    colours_NChw = features_BChw[owner_N]
    h = colours_NChw.shape[-1]
    cells = (coords_N2 / CONFIG.image_size * h).long().clamp(0, h - 1)
    own_NC = colours_NChw[torch.arange(len(cells)), :, cells[:, 1], cells[:, 0]]
    distance = (colours_NChw - own_NC[:, :, None, None]).abs().amax(dim=1)
    logits = torch.stack([tolerance - distance for tolerance in TOLERANCES], dim=1)
    # better where the region is of one colour: different for each click, so that no two are equal
    inside = (logits > 0).float()
    spread = (inside * distance[:, None]).sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp(min=1)
    return logits, 1 - spread / 255 - coords_N2.sum(dim=1, keepdim=True) * 1e-6


class ColourSam(Sam):
    """Ours."""

    def __init__(self) -> None:
        super().__init__(replace(CONFIG, encoder_depth=1, global_attn_indexes=(0,)))

    def encode(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images * self.pixel_std + self.pixel_mean, 4)

    def projection_cache(self, embeddings: Tensor) -> Tensor:
        return embeddings

    def decode(self, images, image_index_N: Tensor, prompts: Prompts, multimask_output: bool) -> SamOutput:
        return SamOutput(*answer(images, image_index_N, prompts.coords[:, 0]))


class OfficialColourSam(nn.Module):
    """As segment_anything's predictor asks it."""

    mask_threshold, image_format = 0.0, "RGB"

    def __init__(self) -> None:
        super().__init__()
        pytest_official = __import__("segment_anything.modeling", fromlist=["Sam"]).Sam
        self.register_buffer("pixel_mean", torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1), False)
        self.postprocess_masks = pytest_official.postprocess_masks.__get__(self)
        self.preprocess = pytest_official.preprocess.__get__(self)
        encode = ColourSam.encode.__get__(self)
        self.image_encoder = _Called(encode)
        self.image_encoder.img_size = CONFIG.image_size
        self.prompt_encoder = _Called(lambda points, boxes, masks: (points[0][:, 0], None))
        self.prompt_encoder.get_dense_pe = lambda: None
        self.mask_decoder = _Called(self._decode)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def _decode(self, image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, multimask_output):
        owner = torch.zeros(len(sparse_prompt_embeddings), dtype=torch.int64)
        return answer(image_embeddings, owner, sparse_prompt_embeddings.float())


class _Called(SimpleNamespace):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def __call__(self, *arguments, **keywords):
        return self.function(*arguments, **keywords)
