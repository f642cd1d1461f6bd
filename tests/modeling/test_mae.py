"""Tests encoders that start from a masked autoencoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from samtrain.modeling import SAM_CONFIGS, build_sam, load_mae

# a ViT-B of narrow blocks: a class token and 14 x 14 positions as vit_base_patch16_224.mae has them
CONFIG = replace(
    SAM_CONFIGS["vit_b"],
    encoder_dim=48,
    encoder_heads=4,
    encoder_depth=4,
    global_attn_indexes=(1, 3),
    image_size=256,
    prompt_dim=64,
    decoder_mlp_dim=64,
)


def _mae_state(patch: int = 16, dim: int = CONFIG.encoder_dim, depth: int = CONFIG.encoder_depth) -> dict:
    """Returns random weights of timm's ViT of these sizes, with MAE's decoder beside them as in Meta's files."""
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=224, patch_size=patch, embed_dim=dim, depth=depth, num_heads=4, num_classes=0
    )
    state = {key: torch.randn_like(value) for key, value in vit.state_dict().items()}
    return state | {"mask_token": torch.randn(1, 1, 8), "decoder_embed.weight": torch.randn(8, dim)}


@pytest.fixture
def sam():
    torch.manual_seed(0)
    sam = build_sam("vit_b", **{k: v for k, v in CONFIG.to_dict().items() if k != "model"})
    for name, parameter in sam.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter)
    return sam


def _save(state: dict, path):
    torch.save(state, path)
    return path


def test_blocks_patches_and_positions_are_loaded(sam, tmp_path):
    state = _mae_state()
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    ignored = load_mae(sam, _save(state, tmp_path / "mae.pth"))
    assert ignored == ["cls_token", "decoder_embed.weight", "mask_token", "norm.bias", "norm.weight"]
    for key, value in sam.state_dict().items():
        name = key.removeprefix("image_encoder.")
        if ".rel_pos_" in key:
            assert not value.any(), key
        elif name in state and name != "pos_embed":
            assert torch.equal(value, state[name]), key
        elif not key.startswith("image_encoder.") or "neck" in key:
            assert torch.equal(value, before[key]), key


def test_the_class_token_is_dropped_and_positions_are_resized(sam, tmp_path):
    """Positions that form a plane on 14 x 14 form it on 16 x 16, and the class token's position does not enter."""
    state = _mae_state()
    ramp = torch.linspace(0, 1, 14)[:, None].expand(14, 14).reshape(1, 196, 1).expand(1, 196, CONFIG.encoder_dim)
    state["pos_embed"] = torch.cat([torch.full((1, 1, CONFIG.encoder_dim), 1e6), ramp], dim=1)
    load_mae(sam, _save(state, tmp_path / "mae.pth"))
    rows = sam.image_encoder.pos_embed[0, :, 0, 0]
    assert sam.image_encoder.pos_embed.shape == (1, 16, 16, CONFIG.encoder_dim)
    assert -0.1 < rows.min() < rows.max() < 1.1
    torch.testing.assert_close(rows[3:-3].diff(), torch.full((9,), 14 / 16 / 13), rtol=1e-2, atol=1e-3)


def test_equal_grids_keep_positions_to_the_bit(tmp_path):
    sam = build_sam("vit_b", **{k: v for k, v in CONFIG.to_dict().items() if k != "model"} | {"image_size": 224})
    state = _mae_state()
    load_mae(sam, _save({"model": state}, tmp_path / "mae.pth"))
    assert torch.equal(sam.image_encoder.pos_embed.flatten(1, 2), state["pos_embed"][:, 1:])


def test_patches_of_14_become_16(sam, tmp_path):
    """As for the huge model: a smooth image gets the embedding that its smaller copy got."""
    state = _mae_state(patch=14)
    load_mae(sam, _save(state, tmp_path / "mae.pth"))
    new, old = sam.image_encoder.patch_embed.proj.weight, state["patch_embed.proj.weight"]
    assert new.shape[2:] == (16, 16)
    patch = torch.nn.functional.interpolate(torch.randn(1, 3, 5, 5), (14, 14), mode="bicubic")
    larger = torch.nn.functional.interpolate(patch, (16, 16), mode="bicubic", antialias=True)
    expected, found = (patch * old).sum(dim=(1, 2, 3)), (larger * new).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise.weight": torch.ones(1)}, "unexpected: surprise.weight"),
        ({"blocks.0.norm1.bias": None}, "missing: blocks.0.norm1.bias"),
        ({"pos_embed": None}, "pos_embed is missing"),
    ],
)
def test_keys_that_match_nothing_are_errors(sam, tmp_path, change, message):
    state = {key: value for key, value in (_mae_state() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_mae(sam, _save(state, tmp_path / "mae.pth"))


def test_another_width_or_depth_is_refused(sam, tmp_path):
    with pytest.raises(ValueError, match="width 64, but the encoder of vit_b has 48: set recipes.vit_b.mae"):
        load_mae(sam, _save(_mae_state(dim=64), tmp_path / "mae.pth"))
    with pytest.raises(ValueError, match="unexpected: blocks.4"):
        load_mae(sam, _save(_mae_state(depth=5), tmp_path / "mae.pth"))


def test_timm_names(sam, monkeypatch):
    with pytest.raises(ValueError, match="set recipes.<model>.mae to one of vit_base_patch16_224.mae"):
        load_mae(sam, "timm:vit_base_patch16_224.mea")
    state = _mae_state()

    class Fetched(torch.nn.Module):
        def state_dict(self):
            return state

    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: Fetched())
    load_mae(sam, "timm:vit_base_patch16_224.mae")
    assert torch.equal(sam.image_encoder.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])

    def offline(name, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match="set recipes.<model>.mae to a local file"):
        load_mae(sam, "timm:vit_base_patch16_224.mae")


def test_the_three_weights_of_the_paper_exist_in_timm():
    names = timm.list_pretrained("vit_*.mae")
    assert {"vit_base_patch16_224.mae", "vit_large_patch16_224.mae", "vit_huge_patch14_224.mae"} <= set(names)
