"""Embeds crops of objects and sentences into the one space of CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrain.ops.crops import object_crops, without_background

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP, for pixels of 0 to 1
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
CROPS_AT_A_TIME = 64


class Clip(nn.Module):
    """A CLIP of open_clip; `embed_objects` and `embed_texts` return vectors of length 1 that can be compared.

    Args:
        model: an open_clip model, with `visual` and `encode_text`.
        tokenize: turns sentences into (T, L) token ids.
        mask_attention: in the last layer the output token looks only at positions inside of the object (appendix D.5). Only
            open_clip's own vision transformer can do this.

    Raises:
        ValueError: if `mask_attention` is asked of another image tower.
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, tokenize: Callable[[list[str]], Tensor], *, mask_attention: bool = True) -> None:
        super().__init__()
        self.model, self.tokenize = model.eval(), tokenize
        if mask_attention and not _has_class_token(model.visual):
            raise ValueError(
                f"the image tower of this CLIP is a {type(model.visual).__name__}, in which the attention of the last layer "
                "cannot be masked: set text.mask_attention=false"
            )
        self.mask_attention = mask_attention
        visual: Any = model.visual
        for name, values in (("mean", IMAGE_MEAN), ("std", IMAGE_STD)):
            values = getattr(visual, f"image_{name}", None) or values
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1) * 255, persistent=False)
        size = visual.image_size
        self.image_size = int(size[0] if isinstance(size, Sequence) else size)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dim(self) -> int:
        """The length of the embeddings."""
        return int(self.model.visual.output_dim)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns (T, E) float32, the l2-normalised embeddings of sentences."""
        if not texts:
            return torch.zeros(0, self.dim, device=self.device)
        tokens = self.tokenize(list(texts)).to(self.device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    def embed_objects(
        self, image_3HW: Tensor, masks_NHW: Tensor, *, scale_N: Tensor | None = None, zeroed_N: Tensor | None = None
    ) -> Tensor:
        """Returns (N, E) float32, the l2-normalised embeddings of the crops of an image's objects.

        Args:
            image_3HW: uint8 RGB.
            masks_NHW: bool.
            scale_N: the crop's side as a multiple of the box's; None: 1.5, the middle of what training draws.
            zeroed_N: whether the background becomes black; None: it stays.
        """
        scale_N = torch.full((len(masks_NHW),), 1.5) if scale_N is None else scale_N
        crops, inside = object_crops(image_3HW, masks_NHW, self.image_size, scale_N)
        if zeroed_N is not None:
            crops = without_background(crops, inside, zeroed_N)
        return self.embed_crops(crops.to(self.device), inside.to(self.device))

    def embed_crops(self, crops_N3ss: Tensor, inside_Nss: Tensor | None) -> Tensor:
        """Returns (N, E) float32 for crops of `image_size` pixels of 0 to 255, and the objects' masks in them or None."""
        if not len(crops_N3ss):
            return torch.zeros(0, self.dim, device=self.device)
        pixels = ((crops_N3ss - self.mean) / self.std).to(next(self.model.parameters()).dtype)
        if inside_Nss is None or not self.mask_attention:
            found = [self.model.encode_image(part) for part in pixels.split(CROPS_AT_A_TIME)]
        else:
            parts = zip(pixels.split(CROPS_AT_A_TIME), inside_Nss.split(CROPS_AT_A_TIME), strict=True)
            found = [_masked_forward(self.model.visual, part, inside) for part, inside in parts]
        return F.normalize(torch.cat(found).float(), dim=-1)


def _has_class_token(visual: Any) -> bool:
    """Returns whether this is open_clip's own vision transformer, which pools by its class token."""
    known = all(hasattr(visual, name) for name in ("_embeds", "_pool", "transformer", "grid_size"))
    return known and getattr(visual, "pool_type", None) == "tok" and getattr(visual, "attn_pool", None) is None


def _masked_forward(visual: Any, pixels_N3ss: Tensor, inside_Nss: Tensor) -> Tensor:
    """Returns (N, E) as `visual(pixels)` does, but the output token of the last block sees the object's patches alone."""
    x_NLC = visual._embeds(pixels_N3ss)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x_NLC = block(x_NLC)
    # a boolean mask would be cast to float and added, and so mask nothing
    bias_NLL = attention_bias(patches_inside(inside_Nss, visual.grid_size)).to(x_NLC.dtype)
    heads = last.attn.num_heads
    x_NLC = last(x_NLC, attn_mask=bias_NLL.repeat_interleave(heads, dim=0))
    pooled, _ = visual._pool(x_NLC)
    return pooled if visual.proj is None else pooled @ visual.proj


def patches_inside(inside_Nss: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns (N, G) bool: the patches of which the object covers half, or the one that it covers most."""
    covered_NG = F.adaptive_avg_pool2d(inside_Nss[:, None].float(), grid).flatten(1)
    most = F.one_hot(covered_NG.argmax(dim=1), covered_NG.shape[1]).bool()
    return (covered_NG >= 0.5) | most


def attention_bias(inside_NG: Tensor) -> Tensor:
    """Returns (N, 1 + G, 1 + G), what is added to the attention's logits: the first token sees itself and its patches."""
    N, G = inside_NG.shape
    bias = torch.zeros(N, 1 + G, 1 + G, device=inside_NG.device)
    bias[:, 0, 1:].masked_fill_(~inside_NG, float("-inf"))
    return bias
