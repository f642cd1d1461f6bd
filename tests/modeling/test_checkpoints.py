"""Tests files of weights: they are read strictly, written completely, and never execute code."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch

from samtrain.files import atomic_path
from samtrain.modeling import SAM_CONFIGS, Sam, build_sam, load_sam, save_official, save_safetensors
from samtrain.modeling.weights import infer_config

TINY = SAM_CONFIGS["vit_tiny"]


@pytest.fixture(scope="module")
def official(random_official_state) -> dict:
    return {key: value.clone() for key, value in random_official_state(TINY, 11).items()}


@pytest.fixture
def official_file(official, tmp_path):
    path = tmp_path / "official.pth"
    torch.save(official, path)
    return path


def _same_weights(a: Sam, b: Sam) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_official_to_ours_to_official_is_equal_to_the_bit(official, official_file, tmp_path):
    sam = build_sam("vit_tiny", checkpoint=official_file)
    assert not sam.training
    written = torch.load(save_official(sam, tmp_path / "again.pth"), weights_only=True)
    assert sorted(written) == sorted(official)
    assert all(torch.equal(written[key], official[key]) for key in official)
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_meta_loads_what_we_write(official_sam, official_file, tmp_path):
    sam = build_sam("vit_tiny", checkpoint=official_file)
    theirs = official_sam(TINY, torch.load(save_official(sam, tmp_path / "x.pth"), weights_only=True))
    assert len(theirs.state_dict()) == len(sam.state_dict())


def test_every_kind_of_file_gives_the_same_model(official, official_file, tmp_path):
    sam = load_sam(official_file)
    lightning = {f"sam.{key}": value for key, value in sam.state_dict().items()} | {"loss.weight": torch.ones(1)}
    compiled = {key.replace("sam.", "sam._orig_mod."): value for key, value in lightning.items()}
    torch.save({"state_dict": lightning, "sam_config": sam.config.to_dict(), "epoch": 3}, tmp_path / "ours.ckpt")
    torch.save({"state_dict": compiled, "sam_config": sam.config.to_dict()}, tmp_path / "compiled.ckpt")
    torch.save({"model": official}, tmp_path / "wrapped.pth")
    save_safetensors(sam, tmp_path / "ours.safetensors")
    save_official(sam, tmp_path / "again.pth")
    for name in ("ours.ckpt", "compiled.ckpt", "wrapped.pth", "ours.safetensors", "again.pth"):
        loaded = load_sam(tmp_path / name)
        assert loaded.config == sam.config, name
        assert _same_weights(loaded, sam), name
        assert _same_weights(build_sam("vit_tiny", checkpoint=tmp_path / name), sam), name


def test_safetensors_under_metas_and_transformers_names(official, official_file, transformers_sam, tmp_path):
    from safetensors.torch import save_file

    sam = load_sam(official_file)
    save_file(official, tmp_path / "official.safetensors")
    theirs = {key: value.clone() for key, value in transformers_sam(TINY, official).state_dict().items()}
    save_file(theirs, tmp_path / "transformers.safetensors", metadata={"format": "pt"})
    for name in ("official.safetensors", "transformers.safetensors"):
        assert _same_weights(load_sam(tmp_path / name), sam), name


@pytest.mark.parametrize("header", [0, 8])
def test_weights_are_aligned_in_memory(official, tmp_path, header):
    """The length of a safetensors header decides where its tensors begin; last bits must not depend on it."""
    from safetensors.torch import save_file

    save_file(official, tmp_path / "x.safetensors", metadata={"note": "x" * header})
    assert not any(p.data_ptr() % 16 for p in load_sam(tmp_path / "x.safetensors").parameters())


def test_loaded_models_are_built_without_drawing_and_can_be_trained(official_file):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    sam = load_sam(official_file)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {p.device.type for p in [*sam.parameters(), *sam.buffers()]} == {"cpu"}
    assert all(p.requires_grad for p in sam.parameters())


def test_half_precision_files_become_float32(official, tmp_path):
    torch.save({key: value.half() for key, value in official.items()}, tmp_path / "half.pth")
    assert {p.dtype for p in load_sam(tmp_path / "half.pth").parameters()} == {torch.float32}


@pytest.mark.parametrize("image_size", [64, 128, 256])
def test_another_image_size_resizes_positions_and_leaves_windows(official, official_file, image_size):
    sam = build_sam("vit_tiny", checkpoint=official_file, image_size=image_size)
    assert _same_weights(load_sam(official_file, image_size=image_size), sam)
    grid = image_size // TINY.patch_size
    assert sam.image_encoder.pos_embed.shape == (1, grid, grid, TINY.encoder_dim)
    for i, block in enumerate(sam.image_encoder.blocks):
        table = official[f"image_encoder.blocks.{i}.attn.rel_pos_h"]
        if i in TINY.global_attn_indexes:
            assert len(block.attn.rel_pos_h) == 2 * grid - 1
        else:
            assert torch.equal(block.attn.rel_pos_h, table)
    with torch.no_grad():
        assert sam.encode(torch.zeros(1, 3, image_size, image_size)).isfinite().all()


def test_resizing_preserves_smooth_positions():
    """Positions that form a plane still form it on another grid."""
    sam = build_sam("vit_tiny")
    ramp = torch.linspace(0, 1, 16)[None, :, None, None].expand(1, 16, 16, TINY.encoder_dim)
    from samtrain.modeling.weights import resize_positions

    resized = resize_positions({"image_encoder.pos_embed": ramp}, replace(sam.config, image_size=256))
    inner = resized["image_encoder.pos_embed"][0, 4:-4, 0, 0].diff()
    torch.testing.assert_close(inner, torch.full_like(inner, 1 / 30), rtol=1e-3, atol=1e-4)


# configs from shapes


@pytest.mark.parametrize("model", list(SAM_CONFIGS))
@pytest.mark.parametrize("grid", [4, 14, 20])
def test_the_model_is_inferred_from_shapes(model, grid):
    """Also if windows are as large as the grid (14 for Meta's models), when shapes do not tell windowed from global blocks."""
    config = replace(SAM_CONFIGS[model], image_size=grid * SAM_CONFIGS[model].patch_size)
    with torch.device("meta"):
        assert infer_config(Sam(config).state_dict()) == config


def test_an_unknown_model_is_inferred_from_shapes(tmp_path):
    config = replace(
        TINY, model="mine", encoder_depth=5, encoder_dim=96, global_attn_indexes=(4,), window_size=6, image_size=80
    )
    found = infer_config(Sam(config).state_dict())
    assert found == replace(config, model="custom", decoder_heads=8)
    # what shapes do not tell travels with the files we write
    assert load_sam(save_official(Sam(config), tmp_path / "mine.pth")).config == config


# refusals


def _refusal(path, model: str = "vit_tiny") -> str:
    with pytest.raises(ValueError) as error:
        build_sam(model, checkpoint=path)
    return str(error.value)


def test_missing_and_unexpected_keys_are_named(official, tmp_path):
    state = dict(official)
    del state["mask_decoder.iou_token.weight"]
    state["image_encoder.blocks.0.surprise"] = torch.ones(1)
    state["image_encoder.neck.1.bias"] = torch.ones(3)
    torch.save(state, tmp_path / "x.pth")
    message = _refusal(tmp_path / "x.pth")
    assert "missing: mask_decoder.iou_token.weight" in message
    assert "unexpected: image_encoder.blocks.0.surprise" in message
    assert f"image_encoder.neck.1.bias (3,) instead of ({TINY.prompt_dim},)" in message
    with pytest.raises(ValueError, match="mask_decoder.iou_token.weight"):
        load_sam(tmp_path / "x.pth")


def test_a_checkpoint_of_another_model_names_both(official_file):
    message = _refusal(official_file, "vit_small")
    assert "checkpoint of vit_tiny" in message and "but the model is vit_small" in message
    assert f"encoder_depth {TINY.encoder_depth} instead of" in message


def test_weights_of_another_kind_of_model_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.ones(3, 3)}, tmp_path / "x.pth")
    message = _refusal(tmp_path / "x.pth")
    assert "not the weights of a SAM" in message and "conv1.weight" in message
    torch.save([1, 2, 3], tmp_path / "x.pth")
    assert "holds no tensors but a list" in _refusal(tmp_path / "x.pth")
    torch.save({}, tmp_path / "x.pth")
    assert "holds no tensors" in _refusal(tmp_path / "x.pth")
    assert "there is no file" in _refusal(tmp_path / "absent.pth")


def test_a_config_of_another_version_names_the_file(official, tmp_path):
    for config in ({**TINY.to_dict(), "registers": 4}, {"model": "vit_tiny"}, "vit_tiny"):
        torch.save({"state_dict": official, "sam_config": config}, tmp_path / "later.ckpt")
        with pytest.raises(ValueError, match=r"later\.ckpt carries a sam_config of another version .*task=export"):
            load_sam(tmp_path / "later.ckpt")


class _Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "inside", "bare"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_is_refused_and_not_run(official, tmp_path, form):
    path, trace = tmp_path / "evil.pth", tmp_path / "executed"
    evil = _Malicious(f"touch {trace}")
    if form == "bare":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil if form == "zip" else {**official, "image_encoder.extra": evil}, path)
    message = _refusal(path)
    assert not trace.exists()
    assert "nothing in it was executed" in message and "safetensors" in message
    if form != "bare":
        assert "system" in message


@pytest.mark.parametrize("name", ["official.pth", "ours.safetensors"])
def test_a_truncated_file_is_reported(official_file, tmp_path, name):
    save_safetensors(load_sam(official_file), tmp_path / "ours.safetensors")
    path = tmp_path / name
    os.truncate(path, path.stat().st_size // 2)
    assert "cut short" in _refusal(path)


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.pth").touch()
    assert "cannot be read as weights" in _refusal(tmp_path / "empty.pth")


def test_a_deeper_decoder_does_not_fit_the_official_layout(tmp_path):
    sam = build_sam("vit_tiny", decoder_depth=3)
    with pytest.raises(ValueError, match="decoders of 2 layers, this one has 3 .model.decoder_depth."):
        save_official(sam, tmp_path / "x.pth")
    assert load_sam(save_safetensors(sam, tmp_path / "x.safetensors")).config.decoder_depth == 3


def test_unknown_models_and_settings():
    with pytest.raises(ValueError, match="'vit_g' is not a model .model.name.: choose from vit_b, vit_h, vit_l"):
        build_sam("vit_g")
    with pytest.raises(ValueError, match="a model has no settings named depth: choose from encoder_dim"):
        build_sam("vit_tiny", depth=3)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.pth"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("killed")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_can_write_one_file_at_once(tmp_path):
    """Nor do two threads of one process, or two machines with equal process numbers."""
    path = tmp_path / "x.pth"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("whole")
        second.write_text("whole")
        assert first != second
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_official_files_contain_only_tensors_for_meta(official_file, tmp_path):
    state = torch.load(save_official(load_sam(official_file), tmp_path / "x.pth"), weights_only=True)
    assert type(state) is OrderedDict
    assert all(isinstance(value, torch.Tensor) and value.dtype == torch.float32 for value in state.values())
