"""CLIP: equal to other packages' models, its last layer looks inside of the object, and wrong files are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

open_clip = pytest.importorskip("open_clip")

from samtrain.text import Clip, load_clip  # noqa: E402
from samtrain.text.clip import attention_bias, patches_inside  # noqa: E402
from samtrain.text.loading import new_clip  # noqa: E402
from tests.tiny_clip import TINY, hugging_face_clip, tiny_clip, tiny_clip_folder  # noqa: E402


def image(seed: int = 0, height: int = 40, width: int = 60) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def half(height: int = 40, width: int = 60) -> torch.Tensor:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, :, : width // 2] = True
    return mask


def crops(count: int = 3) -> torch.Tensor:
    return torch.stack([image(i, 32, 32) for i in range(count)])


# ---- embeddings


def test_embeddings_are_those_of_open_clip() -> None:
    clip = tiny_clip()
    texts = ["a red ellipse", "a blue band, part of a red ellipse"]
    ours = clip.embed_texts(texts)
    theirs = clip.model.encode_text(open_clip.tokenize(texts, 16), normalize=True)
    assert torch.equal(ours, theirs) and torch.allclose(ours.norm(dim=1), torch.ones(2))
    pixels = (crops() / 255 - clip.mean / 255) / (clip.std / 255)
    theirs = clip.model.encode_image(pixels, normalize=True)
    assert torch.allclose(clip.embed_crops(crops(), None), theirs, atol=1e-6)


def test_a_mask_that_covers_the_crop_changes_nothing() -> None:
    clip = tiny_clip()
    everything = torch.ones(3, 32, 32, dtype=torch.bool)
    assert torch.allclose(clip.embed_crops(crops(), everything), clip.embed_crops(crops(), None), atol=1e-6)


def test_in_the_last_layer_the_output_token_sees_the_patches_of_the_object_alone() -> None:
    """With one block, patches outside of the object must have no effect at all; a boolean mask would fail here."""
    config = json.loads(json.dumps(TINY))
    config["vision_cfg"]["layers"] = 1
    torch.manual_seed(0)
    clip = new_clip(config).requires_grad_(False)
    inside = torch.zeros(1, 32, 32, dtype=torch.bool)
    inside[:, :16, :16] = True
    first = crops(1)
    other = torch.where(inside[:, None], first, 255 - first)
    assert torch.allclose(clip.embed_crops(first, inside), clip.embed_crops(other, inside), atol=1e-6)
    assert not torch.allclose(clip.embed_crops(first, None), clip.embed_crops(other, None), atol=1e-3)


def test_a_small_object_keeps_the_patch_that_it_covers_most() -> None:
    inside = torch.zeros(2, 32, 32, dtype=torch.bool)
    inside[0, 9:11, 17:20] = True
    inside[1, :8, :12] = True
    found = patches_inside(inside, (4, 4))
    assert found[0].nonzero().tolist() == [[6]] and found[1].nonzero().tolist() == [[0], [1]]
    bias = attention_bias(found)
    assert bias[0, 0].isneginf().sum() == 15 and not bias[:, 1:].isneginf().any() and bias[0, 0, 0] == 0


def test_objects_are_embedded_one_by_one_or_together() -> None:
    clip = tiny_clip()
    masks = torch.cat([half(), ~half()])
    together = clip.embed_objects(image(), masks)
    assert torch.allclose(together[1:], clip.embed_objects(image(), masks[1:]), atol=1e-6)
    assert clip.embed_objects(image(), masks[:0]).shape == (0, 24) and clip.embed_texts([]).shape == (0, 24)


def test_zeroing_the_background_hides_it() -> None:
    clip = tiny_clip()
    first = image()
    other = torch.where(half(), first, 255 - first)
    zeroed, scale = torch.ones(1, dtype=torch.bool), torch.full((1,), 1.3)
    same = [clip.embed_objects(each, half(), scale_N=scale, zeroed_N=zeroed) for each in (first, other)]
    assert not torch.allclose(clip.embed_objects(first, half()), clip.embed_objects(other, half()), atol=1e-4)
    assert torch.allclose(same[0], same[1], atol=0.02)  # the edge's pixels are mixed with the background by resizing


def test_only_the_vision_transformer_can_mask_its_attention() -> None:
    config = {**TINY, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
    model = open_clip.CLIP(**config)
    with pytest.raises(ValueError, match="text.mask_attention=false"):
        Clip(model, open_clip.tokenize)
    resnet = Clip(model, lambda texts: open_clip.tokenize(texts, 16), mask_attention=False)
    assert resnet.embed_crops(crops(), torch.ones(3, 32, 32, dtype=torch.bool)).shape == (3, 24)


# ---- files


def assert_same(a: Clip, b: Clip) -> None:
    assert torch.allclose(a.embed_texts(["a violet box"]), b.embed_texts(["a violet box"]), atol=1e-6)
    assert torch.allclose(a.embed_objects(image(), half()), b.embed_objects(image(), half()), atol=1e-6)


def test_a_folder_comes_back(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path / "clip")
    assert_same(tiny_clip(), load_clip(folder))
    assert_same(tiny_clip(), load_clip(f"local-dir:{folder}"))
    assert not any(p.requires_grad for p in load_clip(folder).parameters())


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_folder_of_transformers_gives_the_same_embeddings(tmp_path: Path, activation: str) -> None:
    model = hugging_face_clip(tmp_path, activation)
    clip = load_clip(tmp_path)
    texts = ["a red ellipse", "an orange box"]
    with torch.no_grad():
        theirs = model.get_text_features(input_ids=clip.tokenize(texts)).pooler_output
        images = model.get_image_features(pixel_values=(crops() - clip.mean) / clip.std).pooler_output
    normal = torch.nn.functional.normalize
    assert torch.allclose(clip.embed_texts(texts), normal(theirs, dim=-1), atol=1e-5)
    assert torch.allclose(clip.embed_crops(crops(), None), normal(images, dim=-1), atol=1e-5)


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of weights of the models tiny and tiny-quickgelu, which open_clip knows by their names."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "tiny.json").write_text(json.dumps({**TINY, "quick_gelu": False}))
    (configs / "tiny-quickgelu.json").write_text(json.dumps(TINY))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    open_clip.add_model_config(configs)
    path = tmp_path / "clip.pt"
    torch.save(tiny_clip().model.state_dict(), path)
    return path


def test_a_file_of_weights_needs_its_name(named: Path) -> None:
    with pytest.raises(ValueError, match="text.clip_name"):
        load_clip(named)
    with pytest.raises(ValueError, match="does not know"):
        load_clip(named, name="ViT-Nothing")
    with pytest.raises(ValueError, match="does not fit the model"):
        load_clip(named, name="RN50-quickgelu", mask_attention=False)


def test_quick_gelu_is_never_guessed(named: Path) -> None:
    assert_same(tiny_clip(), load_clip(named, name="tiny-quickgelu"))
    with pytest.raises(ValueError, match="tiny-quickgelu"):
        load_clip(named, name="tiny")
    with pytest.raises(ValueError, match="without -quickgelu"):
        load_clip(named, name="tiny-quickgelu", quick_gelu=False)
    assert_same(tiny_clip(), load_clip(named, name="tiny", quick_gelu=True))
    plain = load_clip(named, name="tiny", quick_gelu=False)
    assert not torch.allclose(plain.embed_texts(["a box"]), tiny_clip().embed_texts(["a box"]), atol=1e-4)


def test_safetensors_and_wrapped_weights_are_read(named: Path) -> None:
    state = tiny_clip().model.state_dict()
    save_file(state, named.with_suffix(".safetensors"))
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, named)
    for path in (named, named.with_suffix(".safetensors")):
        assert_same(tiny_clip(), load_clip(path, name="tiny-quickgelu"))


class Harmful:
    def __reduce__(self) -> tuple:
        return print, ("code has run",)


def test_files_that_would_run_code_are_refused(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bad = tmp_path / "bad.pt"
    bad.write_bytes(pickle.dumps({"state_dict": Harmful()}))
    with pytest.raises(ValueError, match=r"\(clip\)"):
        load_clip(bad, name="tiny-quickgelu")
    torch.save({"state_dict": Harmful()}, bad)
    with pytest.raises(ValueError, match="nothing in it was executed"):
        load_clip(bad, name="tiny-quickgelu")
    folder = tiny_clip_folder(tmp_path / "remote")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_clip(folder)
    assert "code has run" not in capsys.readouterr().out


def test_a_torchscript_archive_is_refused_with_the_way_to_convert_it(named: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(named))
    with pytest.raises(ValueError, match="load_openai_model") as error:
        load_clip(named, name="tiny-quickgelu")
    assert "text.clip_name=ViT-L-14-336-quickgelu" in str(error.value)


def test_missing_and_empty_paths_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file or folder"):
        load_clip(tmp_path / "none")
    with pytest.raises(ValueError, match="open_clip_config.json"):
        load_clip(tmp_path)
