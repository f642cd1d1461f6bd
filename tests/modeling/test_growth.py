"""Tests growth: a grown model starts by computing exactly what its parent did."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from samtrain.modeling import SAM_CONFIGS, Sam, build_sam, carry_over, grow, next_model
from samtrain.types import Prompts

TINY, SMALL = SAM_CONFIGS["vit_tiny"], SAM_CONFIGS["vit_small"]


@pytest.fixture(scope="module")
def parent(random_official_state, our_sam):
    """Returns a model with aligned weights, like every model that was built or loaded.

    The tensors of `random_official_state` begin anywhere in a pool. Where a matrix does not begin at a multiple of 16 bytes, as
    the child's copies always do, MKL adds up its product with a single vector in another order.
    """
    return our_sam(TINY, {key: value.clone() for key, value in random_official_state(TINY, 21).items()})


def _outputs(sam) -> list[torch.Tensor]:
    images = torch.randn(2, 3, sam.config.image_size, sam.config.image_size, generator=torch.Generator().manual_seed(1))
    prompts = Prompts(torch.tensor([[[30.0, 40], [0, 0]], [[5, 8], [90, 77]]]), torch.tensor([[1, -1], [2, 3]]))
    with torch.no_grad():
        embeddings = sam.encode(images)
        output = sam.decode(embeddings, torch.tensor([0, 1]), prompts, True)
    return [embeddings, output.low_res_logits, output.iou_predictions]


@pytest.mark.parametrize(
    ("depth", "global_attn_indexes"), [(SMALL.encoder_depth, SMALL.global_attn_indexes), (7, (0, 2, 5, 6)), (4, (1, 3))]
)
def test_the_child_equals_its_parent_to_the_bit(parent, depth, global_attn_indexes):
    config = replace(TINY, model="child", encoder_depth=depth, global_attn_indexes=global_attn_indexes, drop_path=0.3)
    child = grow(parent, config)
    assert child.config == config and not child.training
    for mine, theirs in zip(_outputs(child), _outputs(parent), strict=True):
        assert torch.equal(mine, theirs)
    # weights are copies: the child's training leaves the parent alone
    assert not {p.data_ptr() for p in child.parameters()} & {p.data_ptr() for p in parent.parameters()}


def test_new_blocks_learn(parent):
    """Their last layers have gradients at once, and the whole block has them after one step."""
    child = grow(parent, SMALL)
    new = [b for b in child.image_encoder.blocks if not b.attn.proj.weight.any()]
    assert len(new) == SMALL.encoder_depth - TINY.encoder_depth
    child.encode(torch.randn(1, 3, TINY.image_size, TINY.image_size)).square().sum().backward()
    for block in new:
        assert block.attn.proj.weight.grad.any() and block.mlp.fc2.weight.grad.any()
        assert block.attn.qkv.weight.any()


def test_growth_depends_only_on_its_seed(parent):
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in grow(parent, SMALL, seed=seed).parameters()])

    torch.manual_seed(1)
    first = weights(5)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(first, weights(5))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first, weights(6))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder_dim": 240}, "encoder_dim"),
        ({"encoder_heads": 4}, "encoder_heads"),
        ({"patch_size": 16}, "patch_size"),
        ({"prompt_dim": 64}, "prompt_dim"),
        ({"image_size": 256}, "image_size"),
    ],
)
def test_growth_in_width_without_mae_names_the_key(parent, change, named):
    with pytest.raises(ValueError, match=f"^data_engine.rounds.3.model: vit_tiny cannot grow .*{named}.*recipes.vit_small.mae"):
        next_model(parent, replace(SMALL, **change), key="data_engine.rounds.3.model")


def test_blocks_that_do_not_fit_are_named(parent):
    with pytest.raises(ValueError, match="block 3 of vit_tiny .global. finds no place"):
        grow(parent, replace(TINY, encoder_depth=5, global_attn_indexes=(1,)))
    with pytest.raises(ValueError, match="finds no place"):
        grow(parent, replace(TINY, encoder_depth=3, global_attn_indexes=(1,)))


def test_a_wider_encoder_from_mae_keeps_the_decoder(parent, tmp_path):
    config = replace(SMALL, encoder_dim=96, encoder_heads=4)
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=224, patch_size=16, embed_dim=96, depth=config.encoder_depth, num_heads=4, num_classes=0
    )
    torch.save(vit.state_dict(), tmp_path / "mae.pth")
    child = next_model(parent, config, tmp_path / "mae.pth")
    assert torch.equal(child.image_encoder.blocks[2].attn.qkv.weight, vit.blocks[2].attn.qkv.weight)
    for part in ("prompt_encoder", "mask_decoder"):
        mine, theirs = getattr(child, part).state_dict(), getattr(parent, part).state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_decoder_of_other_sizes_is_not_carried_over(parent):
    other = build_sam("vit_tiny", decoder_depth=3)
    with pytest.raises(ValueError, match="decoder_depth 2 to 3"):
        carry_over(parent, other)


def test_the_paper_schedule_shares_its_decoder():
    """ViT-B, L and H differ only in the encoder, so each can take over the decoder of the one before."""
    with torch.device("meta"):
        models = [Sam(SAM_CONFIGS[name]) for name in ("vit_b", "vit_l", "vit_h")]
    for part in ("prompt_encoder", "mask_decoder"):
        shapes = [{key: v.shape for key, v in getattr(sam, part).state_dict().items()} for sam in models]
        assert shapes[0] == shapes[1] == shapes[2]
