"""Defines Segment Anything: image encoder, prompt encoder and mask decoder (paper, figure 4), and the model sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrain.modeling.image_encoder import ImageEncoder
from samtrain.modeling.image_tokens import ProjectionCache
from samtrain.modeling.initialise import init_from_scratch
from samtrain.modeling.mask_decoder import MaskDecoder
from samtrain.modeling.prompt_encoder import PromptEncoder
from samtrain.modeling.timm_encoder import TimmEncoder, is_timm
from samtrain.modeling.tiny_vit_encoder import DEPTHS, DIMS, HEADS, MODEL, WINDOWS, TinyVitEncoder
from samtrain.types import Prompts, SamOutput, valid_pixels

PIXEL_MEAN = (123.675, 116.28, 103.53)  # of ImageNet, for pixels of 0 to 255 (segment_anything)
PIXEL_STD = (58.395, 57.12, 57.375)
CHANNELS = "RGB"  # their order in the images that a model sees
PAPER_MODELS = ("vit_b", "vit_l", "vit_h")  # the sizes that the paper trained and segment_anything builds
FRAMES = ("resize", "native")  # how an image becomes the input of a model: see `SamConfig.frame`
INPUT_FIELDS = ("frame", "channels", "pixel_mean", "pixel_std")  # fields of SamConfig that no tensor shows


@dataclass(frozen=True)
class SamConfig:
    """Holds the sizes that define a SAM, and how images must be shown to it; checkpoints carry it.

    Raises ValueError for sizes that do not fit together, naming the config keys.
    """

    model: str
    encoder_dim: int
    encoder_depth: int
    encoder_heads: int
    global_attn_indexes: tuple[int, ...]
    window_size: int = 14
    image_size: int = 1024
    patch_size: int = 16
    prompt_dim: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_head_dim: int = 256
    text_dim: int = 0  # of the embeddings of CLIP that text prompts are made of; 0: the model takes no text
    drop_path: float = 0.0  # in the encoder, growing linearly with depth; 0.4 to 0.6 in the paper
    dropout: float = 0.0  # in the decoder; 0.1 in the paper
    # resize: the longest side becomes image_size, as in the paper; native: tiles of image_size pixels of the image itself
    frame: str = "resize"
    channels: str = CHANNELS
    pixel_mean: tuple[float, ...] = PIXEL_MEAN
    pixel_std: tuple[float, ...] = PIXEL_STD

    def __post_init__(self) -> None:
        for name in ("global_attn_indexes", "pixel_mean", "pixel_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_input()
        if self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the patch size {self.patch_size}: "
                f"set {max(1, self.image_size // self.patch_size) * self.patch_size} (model.image_size)"
            )
        for name, dim, heads in (
            ("encoder", self.encoder_dim, self.encoder_heads),
            ("decoder", self.prompt_dim // 2, self.decoder_heads),  # its attention to the image has half the width
        ):
            if dim % heads:
                raise ValueError(f"{name}_heads is {heads}, which does not divide {dim}, the width of its attention")
        if outside := [i for i in self.global_attn_indexes if not 0 <= i < self.encoder_depth]:
            raise ValueError(
                f"global_attn_indexes holds {outside}, but the encoder has the {self.encoder_depth} blocks "
                f"0 to {self.encoder_depth - 1}: change encoder_depth and global_attn_indexes together"
            )

    def _check_input(self) -> None:
        """Raises ValueError for inputs that this version cannot prepare."""
        if self.frame not in FRAMES:
            raise ValueError(f"frame is {self.frame!r}: it is one of {', '.join(FRAMES)}")
        if self.channels != CHANNELS:
            raise ValueError(f"channels is {self.channels!r}, but images are shown to a model as {CHANNELS}")
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or min(self.pixel_std) <= 0:
            raise ValueError(
                f"pixel_mean {self.pixel_mean} and pixel_std {self.pixel_std} are one number per channel, the latter above 0"
            )

    @property
    def grid(self) -> int:
        """The side of the image embedding's grid (g)."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """The side of the decoder's masks (h and w)."""
        return 4 * self.grid

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers, strings and lists, so that a checkpoint that carries them loads without running code."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamConfig:
        """Returns the config that `to_dict` wrote; raises ValueError for unknown names."""
        known = {f.name for f in fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"the model settings {sorted(unknown)} are unknown: use some of {sorted(known)}")
        return cls(**values)


def _laptop(model: str, depth: int, global_attn_indexes: tuple[int, ...]) -> SamConfig:
    """Returns one of our small models, which differ in depth alone, so that one can grow into the other."""
    return SamConfig(
        model=model,
        encoder_dim=192,
        encoder_depth=depth,
        encoder_heads=3,
        global_attn_indexes=global_attn_indexes,
        window_size=6,
        image_size=96,
        patch_size=8,
        prompt_dim=128,
        decoder_heads=4,
        decoder_mlp_dim=512,
        iou_head_dim=128,
    )


SAM_CONFIGS = {
    # sizes of segment_anything's build_sam.py
    "vit_h": SamConfig("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
    "vit_l": SamConfig("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
    "vit_b": SamConfig("vit_b", 768, 12, 12, (2, 5, 8, 11)),
    # our own, small enough for two cores
    "vit_small": _laptop("vit_small", 6, (1, 3, 5)),
    "vit_tiny": _laptop("vit_tiny", 4, (1, 3)),
}


# MobileSAM: a small encoder that was distilled from ViT-H, with SAM's prompt encoder and mask decoder
MOBILE_SAM = SamConfig(MODEL, DIMS[-1], sum(DEPTHS), HEADS[-1], (), window_size=WINDOWS[-1])


def make_image_encoder(config: SamConfig) -> ImageEncoder | TimmEncoder | TinyVitEncoder:
    """Returns the first box of the figure: SAM's ViT, a ViT of timm for a name that begins with "timm/", or MobileSAM's."""
    if config.model == MODEL:
        return TinyVitEncoder(out_chans=config.prompt_dim, drop_path=config.drop_path)
    if is_timm(config.model):
        return TimmEncoder(
            model=config.model,
            image_size=config.image_size,
            patch_size=config.patch_size,
            out_chans=config.prompt_dim,
            drop_path=config.drop_path,
        )
    return ImageEncoder(
        image_size=config.image_size,
        patch_size=config.patch_size,
        dim=config.encoder_dim,
        depth=config.encoder_depth,
        num_heads=config.encoder_heads,
        global_attn_indexes=config.global_attn_indexes,
        window_size=config.window_size,
        out_chans=config.prompt_dim,
        drop_path=config.drop_path,
    )


class Sam(nn.Module):
    """The Segment Anything model: an image encoder, a prompt encoder and a mask decoder (paper, section 3).

    Every method is plain PyTorch and lets gradients pass. `encode` runs once per image, `decode` once per round of prompts.

    Args:
        config: the model's sizes, for example one of `SAM_CONFIGS`.
    """

    mask_threshold = 0.0
    image_format = CHANNELS
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = make_image_encoder(config)
        self.prompt_encoder = PromptEncoder(
            dim=config.prompt_dim,
            image_size=config.image_size,
            grid=config.grid,
            mask_in_chans=config.mask_in_chans,
            text_dim=config.text_dim,
        )
        self.mask_decoder = MaskDecoder(
            dim=config.prompt_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            mlp_dim=config.decoder_mlp_dim,
            iou_head_dim=config.iou_head_dim,
            dropout=config.dropout,
        )
        init_from_scratch(self.image_encoder, self.prompt_encoder, self.mask_decoder)
        self.register_constants()

    def register_constants(self) -> None:
        """Registers the buffers that checkpoints do not hold; called again for a model that was built on the "meta" device."""
        if isinstance(self.image_encoder, TinyVitEncoder):
            self.image_encoder.register_constants()
        self.register_buffer("pixel_mean", torch.tensor(self.config.pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(self.config.pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.pixel_mean.device

    def preprocess(self, images_B3SS: Tensor, input_sizes_B2: Tensor) -> Tensor:
        """Normalises images with the mean and standard deviation of the config (ImageNet's) and sets their padding to zero.

        Args:
            images_B3SS: (B, 3, S, S) RGB of 0 to 255, of any dtype, padded at the bottom and on the right.
            input_sizes_B2: (B, 2) the (H, W) of each image without its padding.

        Returns:
            (B, 3, S, S) float images, for `encode`.
        """
        normalised = (images_B3SS.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return normalised * valid_pixels(input_sizes_B2, images_B3SS.shape[-1])[:, None]

    def encode(self, images_B3SS: Tensor) -> Tensor:
        """Encodes preprocessed images, once per image, whatever is asked about it later.

        Args:
            images_B3SS: (B, 3, S, S) images from `preprocess`.

        Returns:
            (B, C, g, g) embeddings; (B, 256, 64, 64) for the paper's models.
        """
        return self.image_encoder(images_B3SS)

    def projection_cache(self, image_embeddings_BCgg: Tensor) -> ProjectionCache:
        """Returns a cache of what all prompts on these embeddings share; `decode` takes it instead of the embeddings."""
        return ProjectionCache(image_embeddings_BCgg, self.prompt_encoder.dense_pe())

    def decode(
        self, images: Tensor | ProjectionCache, image_index_N: Tensor, prompts: Prompts, multimask_output: bool
    ) -> SamOutput:
        """Predicts masks for N prompts spread over B images.

        Args:
            images: (B, C, g, g) embeddings, or their `projection_cache` if they are decoded many times without gradients.
            image_index_N: (N,) int64, the image of each prompt.
            prompts: clicks, boxes and masks in the input frame.
            multimask_output: three masks per prompt, for ambiguous prompts, or the single mask.

        Returns:
            `SamOutput` with logits (N, M, h, w) and predicted IoUs (N, M); M is 3 or 1.
        """
        cache = images if isinstance(images, ProjectionCache) else self.projection_cache(images)
        tokens, image = self.prompt_encoder(prompts, cache, image_index_N)
        return self.mask_decoder(image, tokens, multimask_output)

    def forward(
        self,
        images_B3SS: Tensor,
        input_sizes_B2: Tensor,
        image_index_N: Tensor,
        prompts: Prompts,
        multimask_output: bool,
    ) -> SamOutput:
        """Preprocesses and encodes images, then decodes prompts; see `preprocess`, `encode` and `decode` for shapes."""
        embeddings = self.encode(self.preprocess(images_B3SS, input_sizes_B2))
        return self.decode(embeddings, image_index_N, prompts, multimask_output)

    def postprocess_masks(
        self, low_res_logits_NMhw: Tensor, input_size: tuple[int, int], original_size: tuple[int, int]
    ) -> Tensor:
        """Returns (N, M, H, W) logits in the original frame.

        The logits are upscaled to S x S, their padding is cut off, and they are resized to the image's size, bilinearly as in
        segment_anything.

        Args:
            low_res_logits_NMhw: (N, M, h, w) logits from `decode`.
            input_size: (H, W) of the image in the network input, without padding.
            original_size: (H, W) of the image as stored.
        """
        # in float32, because a CPU interpolates it faster than bfloat16
        masks = low_res_logits_NMhw.float() if low_res_logits_NMhw.dtype == torch.bfloat16 else low_res_logits_NMhw

        # to the network input
        factor, rest = divmod(self.config.image_size, self.config.mask_size)
        if rest == 0:
            # leave the padding out: one cell beyond the last visible one is enough, because interpolation reaches no further
            h, w = (min(side // factor + 2, self.config.mask_size) for side in input_size)
            masks = F.interpolate(masks[..., :h, :w], (h * factor, w * factor), mode="bilinear", align_corners=False)
        else:
            masks = F.interpolate(masks, (self.config.image_size,) * 2, mode="bilinear", align_corners=False)

        # to the image
        masks = F.interpolate(masks[..., : input_size[0], : input_size[1]], original_size, mode="bilinear", align_corners=False)
        return masks.to(low_res_logits_NMhw.dtype)
