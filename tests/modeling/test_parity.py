"""Compares our numbers with those of segment_anything and transformers, at sizes that take seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samtrain.modeling import SAM_CONFIGS, Sam, SamConfig
from samtrain.modeling.image_encoder import RelPosAttention
from samtrain.modeling.weights import official_state_dict, resize_positions, to_our_layout
from samtrain.types import Prompts

pytestmark = pytest.mark.parity

# windows of 8 in a grid of 12: they are padded
SMALL = replace(SAM_CONFIGS["vit_tiny"], image_size=96, patch_size=8, window_size=8)


def _assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def _images(config: SamConfig, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, config.image_size, config.image_size, generator=generator)


PROMPTS = {
    "point": (torch.tensor([[[10.0, 20.0]], [[33.5, 7.25]]]), torch.tensor([[1], [1]]), None, False),
    "points": (
        torch.tensor([[[10.0, 20.0], [1, 2]], [[33.5, 7.25], [3, 60]]]),
        torch.tensor([[1, 0]] * 2),
        None,
        False,
    ),
    "box": (None, None, torch.tensor([[3.0, 4, 40, 50], [10, 10, 30, 63]]), False),
    "box and point": (
        torch.tensor([[[10.0, 20.0]], [[33.5, 7.25]]]),
        torch.tensor([[1], [0]]),
        torch.tensor([[3.0, 4, 40, 50], [10, 10, 30, 63]]),
        False,
    ),
    "mask": (None, None, None, True),
    "mask and point": (torch.tensor([[[10.0, 20.0]], [[33.5, 7.25]]]), torch.tensor([[1], [1]]), None, True),
}


def _tokens(coords: torch.Tensor | None, labels: torch.Tensor | None, boxes: torch.Tensor | None, mask) -> Prompts:
    """Returns clicks, then the box or the padding token, in segment_anything's order."""
    parts, kinds = [torch.zeros(2, 0, 2)], [torch.zeros(2, 0, dtype=torch.int64)]
    if coords is not None:
        parts.append(coords)
        kinds.append(labels)
    if boxes is not None:
        parts.append(boxes.view(2, 2, 2))
        kinds.append(torch.tensor([[2, 3]] * 2))
    elif coords is not None:
        parts.append(torch.zeros(2, 1, 2))
        kinds.append(torch.full((2, 1), -1))
    return Prompts(torch.cat(parts, dim=1), torch.cat(kinds, dim=1), mask)


def _decode_officially(theirs, embedding, coords, labels, boxes, mask, multimask):
    points = None if coords is None else (coords, labels)
    sparse, dense = theirs.prompt_encoder(points=points, boxes=boxes, masks=mask)
    return theirs.mask_decoder(
        image_embeddings=embedding,
        image_pe=theirs.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )


@pytest.fixture(scope="module")
def pair(random_official_state, official_sam, our_sam):
    state = random_official_state(SMALL, 7)
    return our_sam(SMALL, state), official_sam(SMALL, state)


@pytest.mark.parametrize(("model", "keys"), [("vit_b", 314), ("vit_l", 482), ("vit_h", 594)])
def test_official_keys_and_shapes(model, keys):
    registry = pytest.importorskip("segment_anything").sam_model_registry
    with torch.device("meta"):
        theirs = {key: value.shape for key, value in registry[model]().state_dict().items()}
        ours = {key: value.shape for key, value in Sam(SAM_CONFIGS[model]).state_dict().items()}
    assert len(ours) == keys
    assert {key.replace("mlp.fc", "mlp.lin"): shape for key, shape in ours.items()} == theirs


@pytest.mark.parametrize("model", ["vit_b", "vit_l", "vit_h"])
@torch.no_grad()
def test_large_models_agree(random_official_state, official_sam, our_sam, model):
    config = replace(SAM_CONFIGS[model], image_size=96)
    state = random_official_state(config, 3)
    ours, theirs = our_sam(config, state), official_sam(config, state)
    image = _images(config, 1)
    embedding, their_embedding = ours.encode(image), theirs.image_encoder(image)
    _assert_close(embedding, their_embedding)
    coords, labels, boxes, _ = PROMPTS["box and point"]
    output = ours.decode(embedding, torch.zeros(2, dtype=torch.int64), _tokens(coords, labels, boxes, None), True)
    masks, ious = _decode_officially(theirs, their_embedding, coords, labels, boxes, None, True)
    _assert_close(output.low_res_logits, masks)
    assert (output.iou_predictions - ious).abs().max() <= 1e-4


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS)
@torch.no_grad()
def test_prompts_agree(pair, prompt, multimask):
    ours, theirs = pair
    coords, labels, boxes, with_mask = PROMPTS[prompt]
    mask = torch.randn(2, 1, SMALL.mask_size, SMALL.mask_size, generator=torch.Generator().manual_seed(2)) * 5
    mask = mask if with_mask else None
    embedding = ours.encode(_images(SMALL, 1))
    output = ours.decode(embedding, torch.zeros(2, dtype=torch.int64), _tokens(coords, labels, boxes, mask), multimask)
    masks, ious = _decode_officially(theirs, embedding, coords, labels, boxes, mask, multimask)
    _assert_close(output.low_res_logits, masks)
    assert (output.iou_predictions - ious).abs().max() <= 1e-4


@torch.no_grad()
def test_every_kind_of_weight_changes_the_output(pair, random_official_state, our_sam):
    """A weight without effect in these tests would hide a mistake in its use."""
    reference, _ = pair
    images, prompts = _images(SMALL, 1), _tokens(*PROMPTS["box and point"][:3], None)
    owner = torch.zeros(2, dtype=torch.int64)
    expected = reference.decode(reference.encode(images), owner, prompts, True).low_res_logits
    for kind in ("pos_embed", "rel_pos_h", "rel_pos_w", "norm", "bias", "gaussian_matrix", "point_embeddings"):
        state = random_official_state(SMALL, 7)
        for key in state:
            if kind in key:
                state[key] = state[key] * 0.9
        other = our_sam(SMALL, state)
        found = other.decode(other.encode(images), owner, prompts, True).low_res_logits
        assert (found - expected).abs().max() > 1e-3 * expected.abs().max(), kind


@torch.no_grad()
def test_transformers_agrees(pair, random_official_state, transformers_sam):
    ours, _ = pair
    theirs = transformers_sam(SMALL, random_official_state(SMALL, 7))
    images = _images(SMALL, 1)
    embedding = ours.encode(images)
    _assert_close(embedding, theirs.get_image_embeddings(images))
    for coords, labels, boxes, _ in (PROMPTS["points"], PROMPTS["box and point"]):
        prompts = _tokens(coords, labels, boxes, None)
        output = ours.decode(embedding, torch.zeros(2, dtype=torch.int64), prompts, True)
        answer = theirs(
            image_embeddings=embedding,
            input_points=coords[None],
            input_labels=labels[None],
            input_boxes=None if boxes is None else boxes[None],
        )
        _assert_close(output.low_res_logits, answer.pred_masks[0])
        assert (output.iou_predictions - answer.iou_scores[0]).abs().max() <= 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("grid", [(5, 5), (14, 14), (22, 22), (23, 23), (40, 40)])
@torch.no_grad()
def test_attention_agrees_on_both_paths(grid, dtype, tolerance):
    """Up to 512 positions with an explicit bias, above with the bias folded into query and key."""
    encoder = pytest.importorskip("segment_anything.modeling.image_encoder")
    torch.manual_seed(0)
    theirs = encoder.Attention(48, num_heads=3, use_rel_pos=True, input_size=grid).to(dtype)
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3)
    ours = RelPosAttention(48, num_heads=3, use_rel_pos=True, input_size=grid).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, *grid, 48, dtype=dtype)
    expected = theirs(x)
    assert (ours(x) - expected).abs().max() <= tolerance * expected.abs().max()


@torch.no_grad()
def test_resized_positions_equal_those_of_segment_anything(random_official_state, official_sam, our_sam):
    """segment_anything stretches the tables of a smaller image size at run time, we stretch them once, on loading."""
    state = random_official_state(SMALL, 7)
    larger = replace(SMALL, image_size=144)
    resized = resize_positions(to_our_layout(state), larger)
    ours = our_sam(larger, resized)
    # theirs needs absolute positions of the new size, and keeps the tables of the old one
    with_old_tables = official_state_dict(ours)
    theirs = official_sam(larger, dict(with_old_tables))
    for i in larger.global_attn_indexes:
        attention = theirs.image_encoder.blocks[i].attn
        for axis in "hw":
            table = state[f"image_encoder.blocks.{i}.attn.rel_pos_{axis}"]
            setattr(attention, f"rel_pos_{axis}", torch.nn.Parameter(table))
    images = _images(larger, 1)
    _assert_close(ours.encode(images), theirs.image_encoder(images))
