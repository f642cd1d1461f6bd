"""How a model begins that is trained from scratch: so that a click means something at the first step.

With PyTorch's default initialisation each linear layer shrinks its input by about 1.7, and what depends on the click is lost in
what does not: a small model then answers every click with an empty mask for some hundred steps. Four measures, which leave
architecture and checkpoint keys alone (experiments/LOG.md has the comparisons):

- layers keep the variance of their input (LeCun et al. 1998; He et al. 2015 before a ReLU), those of the encoder half of it:
  for ViT-B that is the customary normal of 0.02, for narrower encoders more;
- absolute positions are a normal of 0.02 and no zeros, from which small models hardly start;
- between tokens and image, keys begin as queries: the inner product of two positions is then largest where they are equal, so
  that a click begins by looking at its own place, and the place at the click;
- the classifiers of the pixels begin small, so that the first steps are not spent on unlearning random masks.
"""

from __future__ import annotations

import torch
from torch import nn

from samtrain.modeling.image_encoder import ImageEncoder
from samtrain.modeling.mask_decoder import MLP, MaskDecoder
from samtrain.modeling.prompt_encoder import PromptEncoder
from samtrain.modeling.timm_encoder import TimmEncoder
from samtrain.modeling.transformer import Attention, MLPBlock

ENCODER_GAIN = 0.5**0.5  # 0.02 is 0.55 of what keeps the variance of 768 channels
SHARPNESS = 1.5  # of the first attention; 1.5 took off earlier than 1, and 2 no earlier (experiments/LOG.md)
CLASSIFIER_SCALE = 0.2  # 0.2 took off earlier than 1 (experiments/LOG.md)


@torch.no_grad()
def init_from_scratch(
    image_encoder: ImageEncoder | TimmEncoder, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder
) -> None:
    """Sets the weights of all layers in place; tokens keep PyTorch's unit normal, relative positions their zeros."""
    for part, gain in ((image_encoder, ENCODER_GAIN), (prompt_encoder, 1.0), (mask_decoder, 1.0)):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                _keep_variance(module, gain)
    nn.init.trunc_normal_(image_encoder.pos_embed, std=0.02)
    for module in mask_decoder.modules():
        if isinstance(module, MLPBlock | MLP):
            before_relu = [module.lin1] if isinstance(module, MLPBlock) else list(module.layers)[:-1]
            for linear in before_relu:
                linear.weight.mul_(2**0.5)

    # where tokens and image meet, a position recognises itself
    transformer = mask_decoder.transformer
    meetings: list[Attention] = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        meetings += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in meetings:
        attention.q_proj.weight.mul_(SHARPNESS)
        attention.k_proj.weight.copy_(attention.q_proj.weight)

    for mlp in mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.mul_(CLASSIFIER_SCALE)


def _keep_variance(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, gain: float) -> None:
    if isinstance(module, nn.Linear):
        fan_in = module.in_features
    elif isinstance(module, nn.ConvTranspose2d):
        fan_in = module.in_channels  # kernel and stride are equal here: one input a pixel
    else:
        fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
    nn.init.trunc_normal_(module.weight, std=gain * fan_in**-0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
