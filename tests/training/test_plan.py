"""The planner's figures against real steps of the same code, and against what arithmetic says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samtrain.interact import interaction_losses, loss_with_flat_memory
from samtrain.losses import SamLoss
from samtrain.modeling.sam import SAM_CONFIGS, Sam, SamConfig
from samtrain.prompts import PromptSampler, seeded_generator
from samtrain.training.plan import StepCost, _batch, _Meter, step_cost
from samtrain.types import Prompts

SMALL = replace(SAM_CONFIGS["vit_tiny"], image_size=192)


def cost(config: SamConfig = SMALL, masks: int = 4, **changes) -> StepCost:
    settings = {"device": "cpu", "images": 1, "bf16": False, "activation_checkpointing": False} | changes
    return step_cost(config, masks=masks, sampler=PromptSampler(num_points=2), loss=SamLoss(), **settings)


def test_it_counts_what_a_real_step_makes() -> None:
    """The same meter round a step that computes finds equal operations; memory is held against real peaks in the benchmarks."""
    torch.manual_seed(0)
    sam, batch, sampler = Sam(SMALL).train(), _batch(SMALL.image_size, 1, 4), PromptSampler(num_points=2)
    meter = _Meter(SMALL.encoder_dim // SMALL.encoder_heads)
    with meter:

        def losses(embeddings):
            return interaction_losses(
                sam,
                embeddings,
                batch,
                sampler,
                SamLoss(),
                schedule=sampler.schedule(seeded_generator("cpu", 0)),
                generator=seeded_generator("cpu", 0),
                num_objects=4.0,
            )

        embeddings = sam.encode(sam.preprocess(batch.images, batch.input_sizes))
        loss_with_flat_memory(sam, embeddings, losses)[0].backward()
    assert cost().tflop * 1e12 == pytest.approx(meter.operations, rel=0.01)


def test_more_of_anything_costs_more() -> None:
    base = cost()
    assert cost(masks=8).decoder_tflop == pytest.approx(2 * base.decoder_tflop, rel=0.1)
    assert cost(masks=8).encoder_tflop == pytest.approx(base.encoder_tflop)
    assert cost(images=2).encoder_tflop == pytest.approx(2 * base.encoder_tflop, rel=0.01)
    assert cost(masks=64).step_gb > 2 * base.step_gb


def test_checkpointing_takes_memory_for_operations() -> None:
    deep = replace(SMALL, encoder_depth=12, global_attn_indexes=(3, 7, 11))
    plain, checkpointed = cost(deep, masks=1), cost(deep, masks=1, activation_checkpointing=True)
    assert checkpointed.step_gb < 0.8 * plain.step_gb
    assert checkpointed.encoder_tflop > 1.15 * plain.encoder_tflop
    assert cost(deep, masks=1, device="cuda", bf16=True).step_gb < cost(deep, masks=1, device="cuda").step_gb


def test_vit_b_by_hand() -> None:
    """Linear layers and attention of the encoder at 1024 px, forward and backward, counted by pencil to 5 %."""
    config = SAM_CONFIGS["vit_b"]
    dim, cells, padded = 768, 64 * 64, 70 * 70
    mlp, windowed, whole = 2 * cells * dim * 4 * dim, (padded * 3 + cells) * dim * dim, 4 * cells * dim * dim
    linear = 12 * mlp + 8 * windowed + 4 * whole
    attention_forward = 2 * (8 * 25 * 12 * 196**2 + 4 * 12 * cells**2) * 64
    operations = 2 * (3 * linear + 3.5 * attention_forward)
    assert cost(config, masks=1).encoder_tflop * 1e12 == pytest.approx(operations, rel=0.05)
    assert cost(config, masks=1).state_gb == pytest.approx(93_735_472 * 12 / 1e9)


def test_a_step_hardly_grows_with_its_interactions() -> None:
    """ViT-B at 1024 px with 16 masks: from 1 to 11 interactions under 5 % (issue 4's figure)."""
    one = PromptSampler(num_points=0, num_mask_only=0)
    eleven = PromptSampler(num_points=8, num_mask_only=2)
    settings = {"device": "cpu", "images": 1, "masks": 16, "loss": SamLoss(), "bf16": False, "activation_checkpointing": False}
    short, long = (step_cost(SAM_CONFIGS["vit_b"], sampler=sampler, **settings) for sampler in (one, eleven))
    assert len(eleven.schedule(seeded_generator("cpu", 0))) == 11
    assert long.step_gb < 1.05 * short.step_gb


def test_a_model_predicts_after_a_plan() -> None:
    """What the plan's tensors without values left in a cache would be found by the next real model of these sizes."""
    cost()
    sam = Sam(SMALL).eval()
    with torch.no_grad():
        embeddings = torch.zeros(1, SMALL.prompt_dim, SMALL.grid, SMALL.grid)
        prompts = Prompts(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.int64))
        output = sam.decode(embeddings, torch.zeros(1, dtype=torch.int64), prompts, True)
    assert output.low_res_logits.numpy().shape == (1, 3, SMALL.mask_size, SMALL.mask_size)
