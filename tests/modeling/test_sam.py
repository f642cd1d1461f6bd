"""Tests what training relies on: batches, drop path, dropout, precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samtrain.modeling import SAM_CONFIGS, Sam, SamConfig
from samtrain.modeling.prompt_encoder import RandomPositionEncoding
from samtrain.types import Prompts

CONFIG = replace(SAM_CONFIGS["vit_tiny"], image_size=64)


@pytest.fixture(scope="module")
def sam(random_official_state, our_sam) -> Sam:
    return our_sam(CONFIG, random_official_state(CONFIG, 1))


def _mixed_prompts() -> tuple[Prompts, torch.Tensor]:
    """Returns five objects in three images, with clicks and boxes; the second image has none."""
    click, box = [[12.0, 30.0], [0, 0]], [[5.0, 8.0], [40, 50]]
    prompts = Prompts(
        torch.tensor([click, box, box, click, click]), torch.tensor([[1, -1], [2, 3], [2, 3], [0, -1], [-1, -1]])
    )
    return prompts, torch.tensor([0, 0, 2, 2, 2])


@pytest.mark.parametrize("multimask", [True, False])
@torch.no_grad()
def test_a_batch_equals_its_prompts_one_by_one(sam, multimask):
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    sizes = torch.tensor([[64, 64], [50, 64], [64, 33]])
    prompts, owner = _mixed_prompts()
    together = sam(images, sizes, owner, prompts, multimask)
    for row, image in enumerate(owner.tolist()):
        rows, photo = slice(row, row + 1), slice(image, image + 1)
        alone = sam(images[photo], sizes[photo], torch.tensor([0]), prompts.select(rows), multimask)
        torch.testing.assert_close(together.low_res_logits[rows], alone.low_res_logits, rtol=0, atol=2e-5)
        torch.testing.assert_close(together.iou_predictions[rows], alone.iou_predictions, rtol=0, atol=2e-5)


@torch.no_grad()
def test_zero_objects_and_zero_tokens(sam):
    embeddings = sam.encode(torch.zeros(1, 3, 64, 64))
    none = Prompts(torch.zeros(0, 2, 2), torch.zeros(0, 2, dtype=torch.int64))
    output = sam.decode(embeddings, torch.zeros(0, dtype=torch.int64), none, True)
    assert output.low_res_logits.shape == (0, 3, CONFIG.mask_size, CONFIG.mask_size)
    unprompted = Prompts(torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.int64))
    output = sam.decode(embeddings, torch.tensor([0]), unprompted, False)
    assert output.iou_predictions.shape == (1, 1)


@torch.no_grad()
def test_padding_does_not_change_the_output(sam):
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    size = torch.tensor([[40, 64]])
    other = images.clone()
    other[:, :, 40:] = 255 - other[:, :, 40:]
    assert torch.equal(sam.preprocess(images, size), sam.preprocess(other, size))


def test_drop_path_drops_whole_samples(random_official_state, our_sam):
    """A dropped branch leaves all positions of a sample unchanged; no window is dropped alone."""
    config = replace(CONFIG, drop_path=0.5)
    sam = our_sam(config, random_official_state(config, 1))
    block = next(b for i, b in enumerate(sam.image_encoder.blocks) if i and i not in config.global_attn_indexes)
    block.drop_path1.drop_prob = 0.5
    block.drop_path2 = torch.nn.Identity()
    block._mlp = torch.zeros_like
    block.train()
    torch.manual_seed(0)
    x = torch.randn(64, config.grid, config.grid, config.encoder_dim)
    with torch.no_grad():
        changed = (block(x) != x).any(dim=3).flatten(1).float().mean(dim=1)
    assert set(changed.tolist()) == {0.0, 1.0}
    assert 0.25 < changed.mean() < 0.75


def test_drop_path_grows_with_depth_and_keeps_the_keys():
    with torch.device("meta"):
        plain, dropping = Sam(CONFIG), Sam(replace(CONFIG, drop_path=0.6, dropout=0.1))
    assert list(plain.state_dict()) == list(dropping.state_dict())
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in dropping.image_encoder.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.6, CONFIG.encoder_depth).tolist())


def test_decoder_dropout_is_active_only_in_training(random_official_state, our_sam):
    config = replace(CONFIG, dropout=0.1)
    sam = our_sam(config, random_official_state(config, 1))
    prompts, owner = _mixed_prompts()
    embeddings = torch.randn(3, config.prompt_dim, config.grid, config.grid)

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return sam.decode(embeddings, owner, prompts, True).low_res_logits

    assert torch.equal(logits(), logits())
    sam.train()
    assert not torch.equal(logits(), logits())


def test_gradients_reach_every_weight(random_official_state, our_sam):
    """Three masks and the single one, clicks, a box and a mask together use every weight."""
    sam = our_sam(CONFIG, random_official_state(CONFIG, 1))
    prompts, owner = _mixed_prompts()
    embeddings = sam.encode(torch.randn(3, 3, 64, 64))
    first = sam.decode(embeddings, owner, prompts, True)
    second = sam.decode(embeddings, owner, prompts.with_mask(first.low_res_logits[:, :1].detach()), False)
    outputs = (first.low_res_logits, first.iou_predictions, second.low_res_logits, second.iou_predictions)
    sum(output.square().sum() for output in outputs).backward()
    assert [name for name, p in sam.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_positions_stay_exact_under_autocast():
    encoding = RandomPositionEncoding(64)
    coords = torch.rand(5, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoding(coords)
    assert torch.equal(found, encoding(coords))
    assert encoding.double()(coords.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 100}, "image_size 100 is not a multiple of the patch size 8: set 96"),
        ({"encoder_depth": 3}, "global_attn_indexes"),
        ({"encoder_heads": 5}, "encoder_heads is 5"),
        ({"decoder_heads": 7}, "decoder_heads is 7"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SAM_CONFIGS["vit_tiny"], **change)


def test_config_round_trip():
    for config in SAM_CONFIGS.values():
        assert SamConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="windowsize"):
        SamConfig.from_dict({"windowsize": 3})


def test_recomputing_in_the_backward_pass_gives_equal_gradients(monkeypatch):
    """Recomputation is forced here; normally it is used only above a certain size."""
    from samtrain.modeling import recompute

    torch.manual_seed(0)
    sam = Sam(SAM_CONFIGS["vit_tiny"]).double().train()
    images = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    prompts = Prompts(torch.tensor([[[20.0, 30], [0, 0]]]), torch.tensor([[1, -1]]), torch.randn(1, 1, 48, 48).double())

    def gradients() -> list[torch.Tensor]:
        output = sam.decode(sam.encode(images), torch.zeros(1, dtype=torch.int64), prompts, multimask_output=False)
        total = output.low_res_logits.square().mean() + output.iou_predictions.sum()
        return torch.autograd.grad(total, [p for p in sam.parameters() if p.requires_grad], allow_unused=True)

    kept = gradients()
    calls = []
    real = recompute.checkpoint
    monkeypatch.setattr(recompute, "MIN_BYTES", 0)
    monkeypatch.setattr(recompute, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    for a, b in zip(kept, gradients(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    assert len(calls) > 4


@torch.no_grad()
def test_products_that_replace_convolutions_on_a_gpu() -> None:
    """The patch embedding, and the first layers of the mask prompt."""
    torch.manual_seed(0)
    sam = Sam(SAM_CONFIGS["vit_tiny"])
    images = torch.randn(2, 3, 96, 96)
    encoder = sam.image_encoder
    torch.testing.assert_close(encoder._patches_in_a_product(images), encoder.patch_embed(images), rtol=1e-5, atol=1e-5)
    masks = 5 * torch.randn(3, 1, 48, 48)
    expected = sam.prompt_encoder.mask_downscaling[:-1](masks).flatten(2).transpose(1, 2)
    torch.testing.assert_close(sam.prompt_encoder._downscale_in_products(masks), expected, rtol=1e-5, atol=1e-5)
