"""Initialises a model that is trained from scratch, so that a click has an effect from the first step.

With PyTorch's default initialisation each linear layer shrinks its input by about 1.7. The part of a token that depends on the
click is then lost among the parts that do not, and a small model answers every click with an empty mask for some hundred steps.
Four changes prevent this; architecture and checkpoint keys stay the same (experiments/LOG.md has the comparisons):

- Layers keep the variance of their input (LeCun et al. 1998; He et al. 2015 before a ReLU), layers of the encoder half of it.
  For ViT-B this is the usual standard deviation of 0.02, for narrower encoders it is larger.
- Absolute positions are drawn with standard deviation 0.02. Small models hardly start to learn from zeros.
- Between tokens and image, keys start equal to queries. The product of two positions is then largest where they are equal, so a
  click first attends to its own place in the image, and that place to the click.
- The classifiers of the pixels start small, so that the first steps are not spent on unlearning random masks.
"""

from __future__ import annotations

import torch
from torch import nn

from samtrain.modeling.image_encoder import ImageEncoder
from samtrain.modeling.mask_decoder import MLP, MaskDecoder
from samtrain.modeling.prompt_encoder import PromptEncoder
from samtrain.modeling.timm_encoder import TimmEncoder
from samtrain.modeling.tiny_vit_encoder import TinyVitEncoder
from samtrain.modeling.transformer import Attention, MLPBlock

ENCODER_GAIN = 0.5**0.5  # 0.02 is 0.55 of what keeps the variance of 768 channels
SHARPNESS = 1.5  # of attention between tokens and image; learning starts earlier than with 1, not later than with 2 (LOG.md)
CLASSIFIER_SCALE = 0.2  # learning starts earlier than with 1 (experiments/LOG.md)


@torch.no_grad()
def init_from_scratch(
    image_encoder: ImageEncoder | TimmEncoder | TinyVitEncoder, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder
) -> None:
    """Sets the weights of all layers in place; tokens keep PyTorch's unit normal, relative positions their zeros."""
    # All layers keep the variance of their input, those of the encoder half of it
    # TinyViT is initialised by timm: its convolutions have groups, and norms behind them
    encoder = image_encoder.neck if isinstance(image_encoder, TinyVitEncoder) else image_encoder
    for part, gain in ((encoder, ENCODER_GAIN), (prompt_encoder, 1.0), (mask_decoder, 1.0)):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                _keep_variance(module, gain)

    # Absolute positions, which TinyViT does not have
    if not isinstance(image_encoder, TinyVitEncoder):
        nn.init.trunc_normal_(image_encoder.pos_embed, std=0.02)

    # Layers before a ReLU, which halves the variance (He et al. 2015)
    for module in mask_decoder.modules():
        if isinstance(module, MLPBlock | MLP):
            before_relu = [module.lin1] if isinstance(module, MLPBlock) else list(module.layers)[:-1]
            for linear in before_relu:
                linear.weight.mul_(2**0.5)

    # Attention between tokens and image: keys equal queries, so that a position attends to itself
    transformer = mask_decoder.transformer
    cross_attentions: list[Attention] = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        cross_attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in cross_attentions:
        attention.q_proj.weight.mul_(SHARPNESS)
        attention.k_proj.weight.copy_(attention.q_proj.weight)

    # Classifiers of the pixels
    for mlp in mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.mul_(CLASSIFIER_SCALE)


def _keep_variance(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, gain: float) -> None:
    """Draws weights whose output has `gain`**2 times the variance of the input, and sets the bias to zero."""
    if isinstance(module, nn.Linear):
        fan_in = module.in_features
    elif isinstance(module, nn.ConvTranspose2d):
        fan_in = module.in_channels  # kernel and stride are equal here, so each output pixel has one input cell
    else:
        fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
    nn.init.trunc_normal_(module.weight, std=gain * fan_in**-0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
