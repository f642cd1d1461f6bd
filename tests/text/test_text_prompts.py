"""A text as a prompt: one token among the others, in models, files and samplers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import TINY, blobs, tiny_sam

from samtrain.modeling import build_sam, load_sam
from samtrain.modeling.checkpoints import save_official, save_safetensors
from samtrain.modeling.growth import with_text
from samtrain.modeling.sam import Sam
from samtrain.prompts import PromptSampler, TextSampler, text_prompts
from samtrain.types import PointLabel, Prompts

E = 24
PADDING, CLICK, TEXT = PointLabel.PADDING, PointLabel.FOREGROUND, PointLabel.TEXT
LEFT, RIGHT = PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT


def embeddings(count: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, E, generator=torch.Generator().manual_seed(seed)), dim=-1)


def prompts(*labels: list[int]) -> Prompts:
    kinds = torch.tensor(labels)
    coords = torch.rand(*kinds.shape, 2, generator=torch.Generator().manual_seed(1)) * 30
    return Prompts(coords, kinds)


@pytest.fixture(scope="module")
def sam() -> Sam:
    return with_text(tiny_sam().eval(), E)


def decoded(sam: Sam, given: Prompts) -> torch.Tensor:
    with torch.no_grad():
        image = torch.randn(1, TINY.prompt_dim, TINY.grid, TINY.grid, generator=torch.Generator().manual_seed(2))
        return sam.decode(image, torch.zeros(len(given), dtype=torch.int64), given, True).low_res_logits


# ---- tokens


def test_a_text_takes_the_place_of_the_padding() -> None:
    both = prompts([CLICK, PADDING], [PADDING, PADDING]).with_text(embeddings(2))
    assert both.labels.tolist() == [[CLICK, TEXT], [TEXT, PADDING]]
    some = prompts([CLICK, PADDING], [LEFT, RIGHT]).with_text(embeddings(2), torch.tensor([True, False]))
    assert some.labels.tolist() == [[CLICK, TEXT], [LEFT, RIGHT]]


def test_a_box_with_a_text_has_one_token_more() -> None:
    given = prompts([CLICK, PADDING], [LEFT, RIGHT]).with_text(embeddings(2))
    assert given.labels.tolist() == [[CLICK, TEXT, PADDING], [LEFT, RIGHT, TEXT]]
    assert given.coords.shape == (2, 3, 2) and given.select(slice(1, 2)).text is not None
    assert torch.equal(given.select(torch.tensor([1])).text, embeddings(2)[1:])


def test_texts_clicks_and_boxes_share_a_batch(sam: Sam) -> None:
    """Rows without a text get exactly what they get without any text in the batch, and a batch equals its single rows."""
    given = prompts([CLICK, PADDING], [LEFT, RIGHT], [PADDING, PADDING])
    rows = torch.tensor([False, False, True])
    with_one = decoded(sam, given.with_text(embeddings(3), rows))
    without = decoded(sam, given)
    assert torch.allclose(with_one[:2], without[:2], atol=1e-6) and not torch.allclose(with_one[2], without[2], atol=1e-4)
    alone = decoded(sam, text_prompts(embeddings(3)[2:]))
    assert torch.allclose(with_one[2:], alone, atol=1e-5)


def test_the_token_is_the_map_of_the_embedding_alone(sam: Sam) -> None:
    """Coordinates of a text mean nothing, and another text gives another mask."""
    moved = text_prompts(embeddings(2))
    moved.coords += 7
    assert torch.equal(decoded(sam, moved), decoded(sam, text_prompts(embeddings(2))))
    tokens = sam.prompt_encoder.embed_tokens(text_prompts(embeddings(2)))
    expected = sam.prompt_encoder.text_embedding(embeddings(2) * E**0.5)
    assert torch.allclose(tokens[:, 0], expected) and not torch.allclose(tokens[0, 0], tokens[1, 0])


def test_models_and_texts_that_do_not_fit_are_told_apart(sam: Sam) -> None:
    with pytest.raises(ValueError, match="takes no text prompts"):
        decoded(tiny_sam().eval(), text_prompts(embeddings(1)))
    with pytest.raises(ValueError, match="trained with a CLIP of 24"):
        decoded(sam, text_prompts(torch.ones(1, 8)))
    with pytest.raises(ValueError, match="give the CLIP that it was trained with"):
        with_text(sam, 8)
    assert with_text(sam, E) is sam


# ---- files


def test_a_model_with_a_text_map_is_the_same_model_otherwise(sam: Sam) -> None:
    given = prompts([CLICK, PADDING], [LEFT, RIGHT])
    assert torch.equal(decoded(sam, given), decoded(tiny_sam().eval(), given))


def test_files_keep_the_text_map(sam: Sam, tmp_path: Path) -> None:
    path = save_safetensors(sam, tmp_path / "sam.safetensors")
    again = load_sam(path)
    assert again.config.text_dim == E
    assert torch.equal(decoded(again, text_prompts(embeddings(2))), decoded(sam, text_prompts(embeddings(2))))


def test_the_official_layout_loads_and_saves_without_it(sam: Sam, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_official(sam, tmp_path / "sam.pth")
    assert "no place for text prompts" in caplog.text
    state = torch.load(path, weights_only=True)
    assert not any("text" in key for key in state)
    again, given = load_sam(path), prompts([CLICK, PADDING])
    assert again.config.text_dim == 0 and torch.equal(decoded(again, given), decoded(sam, given))


def test_a_text_map_is_found_without_a_config(tmp_path: Path) -> None:
    """As in weights that another program has saved again."""
    sam = with_text(build_sam("vit_tiny"), E)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    assert load_sam(tmp_path / "sam.pth").config == sam.config
    assert build_sam("vit_tiny", checkpoint=tmp_path / "sam.pth").config.text_dim == E


# ---- samplers


def first_of(sampler: PromptSampler, seed: int = 0) -> Prompts:
    batch = blobs(seed, counts=(40, 40))
    valid = batch.valid()[batch.image_index]
    return sampler.first(batch.masks, valid, torch.Generator().manual_seed(seed))


def test_only_texts() -> None:
    found = first_of(TextSampler().with_text(embeddings(80)))
    assert found.labels.tolist() == [[TEXT, PADDING]] * 80 and torch.equal(found.text, embeddings(80))


def test_texts_clicks_boxes_and_clicks_with_texts() -> None:
    sampler = TextSampler(text_probability=0.4, click_and_text_probability=0.3)
    found = first_of(sampler.with_text(embeddings(80))).labels.tolist()
    kinds = {tuple(each): found.count(each) / 80 for each in found}
    assert set(kinds) == {(TEXT, PADDING), (CLICK, TEXT), (CLICK, PADDING), (LEFT, RIGHT)}
    assert kinds[TEXT, PADDING] == pytest.approx(0.4, abs=0.15) and kinds[CLICK, TEXT] == pytest.approx(0.15, abs=0.12)


def test_without_texts_it_is_the_paper_s_sampler() -> None:
    found = first_of(TextSampler(text_probability=0.0).with_text(embeddings(80)))
    own = first_of(PromptSampler())
    assert torch.equal(found.coords, own.coords) and torch.equal(found.labels, own.labels)


def test_probabilities_are_checked() -> None:
    with pytest.raises(ValueError, match="prompts.text_probability"):
        TextSampler(text_probability=0.8, click_and_text_probability=0.3)
