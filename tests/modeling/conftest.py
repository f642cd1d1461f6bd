"""Builds the reference models from one random state dict in Meta's layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from samtrain.modeling import Sam, SamConfig
from samtrain.modeling.weights import to_our_layout

StateDict = dict[str, Tensor]


def _spread(key: str, shape: torch.Size) -> float:
    """Returns the standard deviation of a weight; no weight stays at zero or one, where mistakes would not show."""
    if "rel_pos" in key or "pos_embed" in key:
        return 0.3
    if len(shape) == 1:
        return 0.1
    if key.split(".")[-2].endswith(("embed", "token", "tokens", "pe_layer")) or "point_embeddings" in key:
        return 1.0
    return 1 / math.sqrt(math.prod(shape[1:]))


@pytest.fixture(scope="session")
def random_official_state() -> Callable[[SamConfig, int], StateDict]:
    """Returns a function from a config and a seed to a state dict as `segment_anything` would save it.

    The tensors overlap and are not aligned in memory; clone them before saving them or comparing last bits. They are slices
    of one pool of random numbers: drawing and holding all 640 million of ViT-H would take most of a test's time and memory.
    """

    def make(config: SamConfig, seed: int = 0) -> StateDict:
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in Sam(config).state_dict().items()}
        generator = torch.Generator().manual_seed(seed)
        largest = max(math.prod(shape) for shape in shapes.values())
        pool = torch.randn(largest + 1_000_003, generator=generator)
        scaled = cache(lambda spread: pool * spread)

        def tensor(key: str, shape: torch.Size) -> Tensor:
            start = int(torch.randint(len(pool) - math.prod(shape), (), generator=generator))
            noise = scaled(_spread(key, shape))[start : start + math.prod(shape)].view(shape)
            is_norm = len(shape) == 1 and key.endswith("weight")
            return 1 + 2 * noise if is_norm else noise

        return {key.replace("mlp.fc", "mlp.lin"): tensor(key, shape) for key, shape in shapes.items()}

    return make


@pytest.fixture(scope="session")
def official_sam() -> Callable[[SamConfig, StateDict], torch.nn.Module]:
    """Returns a function that builds segment_anything's model at any size; it shares the state dict's memory."""
    pytest.importorskip("segment_anything.modeling", reason="needs the reference: pip install segment-anything")
    from tests.official import official_sam as make

    return make


@pytest.fixture(scope="session")
def our_sam() -> Callable[[SamConfig, StateDict], Sam]:
    """Returns a function that builds our model from the same state dict; it shares the state dict's memory."""

    def make(config: SamConfig, state: StateDict) -> Sam:
        with torch.device("meta"):
            sam = Sam(config)
        sam.register_constants()
        sam.load_state_dict(to_our_layout(state), assign=True)
        return sam.eval()

    return make


@pytest.fixture(scope="session")
def transformers_sam() -> Callable[[SamConfig, StateDict], torch.nn.Module]:
    """Returns a function that builds transformers' SamModel from the same state dict, with Meta's epsilon in its norms."""
    transformers = pytest.importorskip("transformers", reason="needs the reference: pip install transformers")

    def make(config: SamConfig, state: StateDict) -> torch.nn.Module:
        sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
        with torch.device("meta"):
            sam = transformers.SamModel(
                transformers.SamConfig(
                    vision_config={
                        **sizes,
                        "hidden_size": config.encoder_dim,
                        "num_hidden_layers": config.encoder_depth,
                        "num_attention_heads": config.encoder_heads,
                        "global_attn_indexes": list(config.global_attn_indexes),
                        "window_size": config.window_size,
                        "output_channels": config.prompt_dim,
                        "num_pos_feats": config.prompt_dim // 2,
                        "layer_norm_eps": 1e-6,
                    },
                    prompt_encoder_config={**sizes, "hidden_size": config.prompt_dim, "layer_norm_eps": 1e-6},
                    mask_decoder_config={
                        "hidden_size": config.prompt_dim,
                        "mlp_dim": config.decoder_mlp_dim,
                        "num_attention_heads": config.decoder_heads,
                        "iou_head_hidden_dim": config.iou_head_dim,
                        "layer_norm_eps": 1e-5,  # nn.LayerNorm's own, which segment_anything uses; theirs is 1e-6
                    },
                )
            )
        names = transformers_names(list(sam.state_dict()))
        sam.load_state_dict({name: state[official] for name, official in names.items()}, strict=True, assign=True)
        return sam.eval()

    return make


def transformers_names(names: list[str]) -> dict[str, str]:
    """Returns Meta's name for each of transformers' names, from the loader under test; the strict loading above proves it."""
    duplicate = "prompt_encoder.shared_embedding.positional_embedding"
    place = {name: torch.tensor(i) for i, name in enumerate(names) if name != duplicate}
    ours = to_our_layout(place)
    official = {int(i): key.replace("mlp.fc", "mlp.lin") for key, i in ours.items()}
    found = {name: official[int(i)] for name, i in place.items()}
    return found | {duplicate: found["shared_image_embedding.positional_embedding"]}
