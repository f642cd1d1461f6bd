"""Files of SAM's relatives: what holds a SAM is read and said to be incomplete, everything else is refused by name."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samtrain.modeling import Sam, SamConfig, build_sam, load_sam
from samtrain.modeling.checkpoints import save_official, save_safetensors
from samtrain.modeling.sam import MOBILE_SAM
from samtrain.modeling.weights import official_state_dict

SMALL = SamConfig(
    model="custom", encoder_dim=32, encoder_depth=2, encoder_heads=2, global_attn_indexes=(1,), window_size=3, image_size=64,
    patch_size=8, prompt_dim=32, mask_in_chans=8, decoder_mlp_dim=48, iou_head_dim=24,
)  # fmt: skip
TINY_MOBILE = replace(MOBILE_SAM, image_size=128, prompt_dim=32, mask_in_chans=8, decoder_mlp_dim=48, iou_head_dim=24)


@pytest.fixture(scope="module")
def small() -> Sam:
    torch.manual_seed(0)
    return Sam(SMALL).eval()


def _equal(found: Sam, given: Sam) -> bool:
    state = found.state_dict()
    return state.keys() == given.state_dict().keys() and all(torch.equal(state[k], v) for k, v in given.state_dict().items())


# ---- SAM-HQ


def test_the_branch_of_sam_hq_is_left_out_and_said(tmp_path: Path, small: Sam, caplog: pytest.LogCaptureFixture) -> None:
    extra = ("hf_token.weight", "hf_mlp.layers.0.weight", "compress_vit_feat.0.bias", "embedding_encoder.1.weight")
    state = official_state_dict(small) | {f"mask_decoder.{name}": torch.ones(2) for name in extra}
    torch.save(state, tmp_path / "sam_hq.pth")
    found = load_sam(tmp_path / "sam_hq.pth")
    assert _equal(found, small)
    assert "Left out: the branch of SAM-HQ, so that masks are those of the SAM that it was built on (4 tensors)" in caplog.text


def test_a_folder_of_transformers_sam_hq_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the reference: pip install transformers")
    sizes = {"image_size": 64, "patch_size": 8}
    config = transformers.SamHQConfig(
        vision_config={
            **sizes, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "global_attn_indexes": [1],
            "window_size": 3, "output_channels": 32, "num_pos_feats": 16, "mlp_dim": 128,
        },
        prompt_encoder_config={**sizes, "hidden_size": 32, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 48, "num_attention_heads": 4, "iou_head_hidden_dim": 24, "vit_dim": 32,
        },
    )  # fmt: skip
    given = transformers.SamHQModel(config)
    given.save_pretrained(tmp_path)
    found = load_sam(tmp_path)
    assert found.config == replace(SMALL, decoder_heads=4)
    assert torch.equal(found.mask_decoder.iou_token.weight, given.mask_decoder.iou_token.weight)
    assert "the branch of SAM-HQ" in caplog.text


# ---- MobileSAM


def _mobile_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under MobileSAM's names, with the classifier that its files hold."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("image_encoder."):
            key = re.sub(r"patch_embed\.conv([12])", lambda found: f"patch_embed.seq.{2 * int(found[1]) - 2}", key)
            key = re.sub(r"stages\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key)
            key = re.sub(r"stages\.(\d)", r"layers.\1", key).replace(".conv.weight", ".c.weight")
        renamed[key] = value
    classifier = {f"image_encoder.{name}": torch.ones(2) for name in ("norm_head.weight", "norm_head.bias", "head.weight")}
    return renamed | classifier


@pytest.fixture(scope="module")
def mobile() -> Sam:
    torch.manual_seed(0)
    sam = Sam(TINY_MOBILE).eval()
    for name, value in sam.state_dict().items():
        if value.is_floating_point():  # norms' statistics, too
            value.add_(torch.rand_like(value) * (0.2 if "running_var" in name else 0.05))
    return sam


def test_mobile_sam_is_read_under_its_own_names(mobile: Sam, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(_mobile_names(mobile.state_dict()), tmp_path / "mobile_sam.pt")
    found = load_sam(tmp_path / "mobile_sam.pt")
    assert found.config == replace(TINY_MOBILE, image_size=1024) and _equal(found, mobile)
    assert "Left out: the classifier of MobileSAM's encoder, which no mask needs (3 tensors)" in caplog.text
    smaller = load_sam(tmp_path / "mobile_sam.pt", image_size=128)
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(smaller.encode(images), mobile.encode(images))


@torch.no_grad()
def test_its_encoder_computes_what_mobile_sam_does(mobile: Sam) -> None:
    """The reference below is written from MobileSAM's description, under its names."""
    state = {k.removeprefix("image_encoder."): v for k, v in _mobile_names(mobile.state_dict()).items()}

    def conv(name: str, x: Tensor, stride: int = 1, pad: int = 0, depthwise: bool = False) -> Tensor:
        x = F.conv2d(x, state[f"{name}.c.weight"], None, stride, pad, groups=x.shape[1] if depthwise else 1)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.bn.{each}"] for each in names))

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def attention(name: str, x: Tensor, heads: int, window: int) -> Tensor:
        q, k, v = linear(f"{name}.qkv", norm(f"{name}.norm", x)).unflatten(-1, (heads, 3, -1)).permute(3, 0, 2, 1, 4)
        y, x_ = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        cells = torch.stack([y.flatten(), x_.flatten()], dim=-1)
        apart = (cells[:, None] - cells[None]).abs()
        bias = state[f"{name}.attention_biases"][:, apart[..., 0] * window + apart[..., 1]]
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
        return linear(f"{name}.proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def block(name: str, x: Tensor, heads: int, window: int) -> Tensor:
        side = x.shape[-1]
        padded = F.pad(x, (0, -side % window, 0, -side % window)).permute(0, 2, 3, 1)
        count = padded.shape[1] // window
        parts = padded.unflatten(1, (count, window)).unflatten(3, (count, window)).transpose(2, 3)
        seen = attention(f"{name}.attn", parts.flatten(3, 4).flatten(0, 2), heads, window)
        seen = seen.view(len(x), count, count, window, window, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = x + seen[:, :side, :side].permute(0, 3, 1, 2)
        x = conv(f"{name}.local_conv", x, pad=1, depthwise=True)
        rows = x.flatten(2).transpose(1, 2)
        hidden = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.mlp.norm", rows)))
        return (rows + linear(f"{name}.mlp.fc2", hidden)).transpose(1, 2).unflatten(2, (side, side))

    images = torch.randn(1, 3, 128, 128)
    x = conv("patch_embed.seq.2", F.gelu(conv("patch_embed.seq.0", images, 2, 1)), 2, 1)
    for i in range(2):
        name = f"layers.0.blocks.{i}"
        wide = F.gelu(conv(f"{name}.conv2", F.gelu(conv(f"{name}.conv1", x)), pad=1, depthwise=True))
        x = F.gelu(x + conv(f"{name}.conv3", wide))
    for layer, depth, heads, window, stride in ((1, 2, 4, 7, 2), (2, 6, 5, 14, 2), (3, 2, 10, 7, 1)):
        down = f"layers.{layer - 1}.downsample"
        reduced = F.gelu(conv(f"{down}.conv2", F.gelu(conv(f"{down}.conv1", x)), stride, 1, depthwise=True))
        x = conv(f"{down}.conv3", reduced)
        for i in range(depth):
            x = block(f"layers.{layer}.blocks.{i}", x, heads, window)
    for i in (0, 2):
        x = F.conv2d(x, state[f"neck.{i}.weight"], padding=i // 2)
        weight, bias = state[f"neck.{i + 1}.weight"], state[f"neck.{i + 1}.bias"]
        x = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, 1e-6).permute(0, 3, 1, 2)
    assert x.shape == (1, 32, 8, 8)
    found = mobile.encode(images)
    assert (found - x).abs().max() < 1e-4 * x.abs().max()


def test_mobile_sam_is_stored_trained_and_refused_where_it_has_no_place(mobile: Sam, tmp_path: Path) -> None:
    found = load_sam(save_safetensors(mobile, tmp_path / "own.safetensors"))
    assert found.config == mobile.config and _equal(found, mobile)
    with pytest.raises(ValueError, match="the official layout has no place for the encoder mobile_sam"):
        save_official(mobile, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"mobile_sam cannot recompute its activations: set trainer.activation_checkpointing"):
        mobile.image_encoder.set_grad_checkpointing(True)
    new = build_sam("mobile_sam", image_size=128, prompt_dim=32)
    new.train().encode(torch.randn(2, 3, 128, 128)).sum().backward()
    assert all(parameter.grad is not None for parameter in new.image_encoder.parameters())


# ---- others


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("image_encoder.trunk.patch_embed.proj.weight", "They look like those of SAM 2"),
        ("image_encoder.backbone.input_stem.0.weight", "They look like those of EfficientViT-SAM"),
        ("model.0.conv.weight", "They look like those of a YOLO such as FastSAM"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, key: str, said: str) -> None:
    torch.save({key: torch.ones(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=f"these are not the weights of a SAM.*{said}"):
        load_sam(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("image_encoder.blocks.0.attn.qkv.lora_A.weight", "It looks like a SAM with LoRA layers that are not merged"),
        ("image_encoder.blocks.0.Adapter.channel.0.weight", "It looks like a SAM with adapters between its layers"),
        ("mask_decoder.something_new.weight", r"unexpected: mask_decoder.something_new.weight$"),
    ],
)
def test_nothing_inside_a_sam_is_left_out_silently(tmp_path: Path, small: Sam, key: str, said: str) -> None:
    torch.save(official_state_dict(small) | {key: torch.ones(3)}, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match=said):
        load_sam(tmp_path / "sam.pth")


def test_tensors_beside_a_sam_are_named(tmp_path: Path, small: Sam, caplog: pytest.LogCaptureFixture) -> None:
    state = {f"sam.{key}": value for key, value in official_state_dict(small).items()} | {"class_head.weight": torch.ones(3)}
    torch.save({"model": state}, tmp_path / "sam.pth")
    with caplog.at_level(logging.WARNING):
        assert _equal(load_sam(tmp_path / "sam.pth"), small)
    assert "holds more than a SAM. Left out: 'class_head.weight'." in caplog.text
