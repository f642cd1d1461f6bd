"""The optimiser: which parameter learns how fast, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_training import TINY, tiny_sam

from samtrain.modeling.sam import SAM_CONFIGS, Sam
from samtrain.training.lit_sam import freeze
from samtrain.training.optim import AdamWConfig, build_optimizer, param_groups, rate_factor, run_milestones

# rate, layer decay, length and milestones of the paper's three sizes (appendix A; B's and L's milestones by proportion)
PAPER = {
    "vit_h": AdamWConfig(learning_rate=8e-4, layer_decay=0.8, max_steps=90_000, milestones=(60_000, 86_666)),
    "vit_l": AdamWConfig(learning_rate=4e-4, layer_decay=0.8, max_steps=180_000, milestones=(120_000, 173_332)),
    "vit_b": AdamWConfig(learning_rate=8e-4, layer_decay=0.6, max_steps=180_000, milestones=(120_000, 173_332)),
}


def settings_by_name(sam: Sam, config: AdamWConfig) -> dict[str, tuple[float, float]]:
    """(rate as a multiple of the full one, weight decay) of each parameter."""
    of = {
        id(p): (group["lr"] / config.learning_rate, group["weight_decay"])
        for group in param_groups(sam, config)
        for p in group["params"]
    }
    return {name: of[id(p)] for name, p in sam.named_parameters()}


@pytest.mark.parametrize("model", PAPER)
def test_the_papers_rates_by_layer(model: str) -> None:
    with torch.device("meta"):
        sam = Sam(SAM_CONFIGS[model])
    config, depth = PAPER[model], SAM_CONFIGS[model].encoder_depth
    rates = {name: rate for name, (rate, _) in settings_by_name(sam, config).items()}
    lowest = {"vit_h": 6.3e-4, "vit_l": 3.8e-3, "vit_b": 1.3e-3}[model]  # sam-facts.md, 1.4
    assert rates["image_encoder.pos_embed"] == pytest.approx(lowest, rel=0.02)
    assert rates["image_encoder.patch_embed.proj.weight"] == rates["image_encoder.pos_embed"]
    for i in (0, depth // 2, depth - 1):
        expected = pytest.approx(config.layer_decay ** (depth - i))
        assert rates[f"image_encoder.blocks.{i}.attn.qkv.weight"] == expected
        assert rates[f"image_encoder.blocks.{i}.attn.rel_pos_h"] == expected
        assert rates[f"image_encoder.blocks.{i}.norm1.bias"] == expected
    assert rates["image_encoder.neck.0.weight"] == 1
    assert {rate for name, rate in rates.items() if not name.startswith("image_encoder.")} == {1.0}


def test_no_decay_on_norms_biases_and_absolute_positions() -> None:
    decay = {name: d for name, (_, d) in settings_by_name(tiny_sam(), AdamWConfig()).items()}
    free = {name for name, d in decay.items() if d == 0}
    assert {name for name in decay if name.endswith(".bias") or "norm" in name} <= free
    assert "image_encoder.pos_embed" in free
    kept = set(decay) - free
    assert all(decay[name] == 0.1 for name in kept)
    assert {
        "image_encoder.blocks.0.attn.rel_pos_h",
        "mask_decoder.mask_tokens.weight",
        "prompt_encoder.no_mask_embed.weight",
        "image_encoder.neck.0.weight",
    } <= kept


def test_every_trainable_parameter_is_in_one_group() -> None:
    sam = tiny_sam()
    groups = param_groups(sam, AdamWConfig())
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, sam.parameters()))
    assert groups[0]["lr"] == AdamWConfig().learning_rate, "the first group learns at the full rate"
    assert len({group["name"] for group in groups}) == len(groups)


def test_frozen_parameters_are_left_out() -> None:
    sam = tiny_sam()
    freeze(sam, ["mask_decoder.*"])
    grouped = {id(p) for group in param_groups(sam, AdamWConfig()) for p in group["params"]}
    assert grouped == set(map(id, sam.mask_decoder.parameters()))


def test_warm_up_then_steps() -> None:
    config = PAPER["vit_h"]
    factors = {step: rate_factor(config, step, 90_000) for step in (0, 124, 249, 250, 59_999, 60_000, 86_665, 86_666)}
    assert factors[0] == pytest.approx(1 / 250)
    assert factors[124] == pytest.approx(0.5)
    assert factors[249] == factors[250] == factors[59_999] == 1
    assert factors[60_000] == factors[86_665] == pytest.approx(0.1)
    assert factors[86_666] == pytest.approx(0.01)


def test_milestones_go_along_with_the_length_of_a_run() -> None:
    assert run_milestones(PAPER["vit_b"], 180_000) == [120_000, 173_332]
    assert run_milestones(PAPER["vit_b"], 90_000) == [60_000, 86_666]
    assert run_milestones(PAPER["vit_h"], 300) == [200, 289]


def test_cosine_and_constant() -> None:
    cosine = replace(PAPER["vit_h"], schedule="cosine", warmup_steps=0)
    assert [rate_factor(cosine, step, 100) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    constant = replace(cosine, schedule="constant", warmup_steps=10)
    assert [rate_factor(constant, step, 100) for step in (4, 9, 99)] == pytest.approx([0.5, 1, 1])


def test_the_schedule_moves_the_optimisers_rates() -> None:
    config = AdamWConfig(learning_rate=1.0, layer_decay=0.5, warmup_steps=2, milestones=(50,), max_steps=100)
    optimizer, schedule = build_optimizer(tiny_sam(), config, run_steps=10)  # the milestone lies at 5
    seen = []
    for _ in range(7):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[-1]["lr"]))
        optimizer.step()
        schedule.step()
    full = [0.5, 1, 1, 1, 1, 0.1, 0.1]
    lowest = 0.5 ** (TINY.encoder_depth + 1)
    assert [rate for rate, _ in seen] == pytest.approx(full)
    assert [rate for _, rate in seen] == pytest.approx([f * lowest for f in full])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "optim.schedule is 'linear': give one of step, cosine, constant"),
        ({"layer_decay": 0.0}, "recipes.<model>.layer_decay is 0.0"),
        ({"milestones": (80_000, 60_000)}, "recipes.<model>.milestones"),
        ({"milestones": (120_000,)}, "recipes.<model>.max_steps is 90000"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamWConfig(**changes)
