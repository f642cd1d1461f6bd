"""Trainings on a GPU: reproducible, as large as planned, compiled, sharded, and killed."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small_scenes import scenes, step_loss
from tiny_training import BlobData, checkpointing, tiny_lit, tiny_trainer, weights_of

from samtrain.losses import SamLoss
from samtrain.modeling.sam import SAM_CONFIGS, Sam
from samtrain.prompts import CentreSampler, PromptSampler
from samtrain.training.fsdp import EncoderFSDPStrategy
from samtrain.training.optim import AdamWConfig, build_optimizer
from samtrain.training.plan import _batch, step_cost

STEPS = 20


class Killed(Exception):
    """Ends a training in the middle."""


class KillAt(pl.Callback):
    """Raises an exception when step `step`, counted from 0, begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def train(run_dir: Path, device: torch.device, *, steps: int = STEPS, dies_at: int | None = None, **changes: Any) -> None:
    """Trains the tiny model with validations and checkpoints, or resumes."""
    last = run_dir / "checkpoints" / "last.ckpt"
    callbacks = [*([KillAt(dies_at)] if dies_at is not None else []), *checkpointing(run_dir)]
    settings: dict[str, Any] = {"accelerator": "gpu" if device.type == "cuda" else "cpu", "callbacks": callbacks}
    trainer = tiny_trainer(run_dir, max_steps=steps, **(settings | changes))
    trainer.fit(tiny_lit(), BlobData(), ckpt_path=last if last.is_file() else None)
    assert trainer.strategy.root_device.type == device.type


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_killed_training_resumes_as_if_never_killed(tmp_path: Path, device: torch.device, precision: str) -> None:
    """To the bit: killed one step behind a checkpoint, two before a validation. Dropout and drop path are on."""
    train(tmp_path / "whole", device, precision=precision)
    with pytest.raises(Killed):
        train(tmp_path / "killed", device, precision=precision, dies_at=9)
    train(tmp_path / "killed", device, precision=precision)
    for name in ("best.ckpt", "last.ckpt"):
        expected, found = (weights_of(tmp_path / run / "checkpoints" / name) for run in ("whole", "killed"))
        for key, value in expected.items():
            assert torch.equal(value, found[key]), f"{name}: {key}"
    rows = [(tmp_path / run / "metrics.csv").read_bytes() for run in ("whole", "killed")]
    assert rows[0] == rows[1] and rows[0].count(b"\n") == STEPS + 1


def test_fsdp_on_one_rank_trains_as_one_process(tmp_path: Path, device: torch.device) -> None:
    """And resumes from its own checkpoint, as does one process. Without clipping, because norms are rounded differently."""
    try:
        train(tmp_path / "fsdp", device, steps=8, strategy=EncoderFSDPStrategy(), gradient_clip_val=None)
        shutil.copytree(tmp_path / "fsdp", tmp_path / "resumed")
        train(tmp_path / "resumed", device, steps=12, strategy=EncoderFSDPStrategy(), gradient_clip_val=None)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    train(tmp_path / "plain", device, steps=8, gradient_clip_val=None)
    shutil.copytree(tmp_path / "fsdp", tmp_path / "switched")
    train(tmp_path / "switched", device, steps=12, gradient_clip_val=None)
    for one, other in (("plain", "fsdp"), ("resumed", "switched")):
        expected, found = (weights_of(tmp_path / run / "checkpoints" / "last.ckpt") for run in (one, other))
        for key, value in expected.items():
            assert (value - found[key]).abs().max().item() <= 1e-5, f"{one}, {other}: {key}"


@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_is_reproducible(device: torch.device, bf16: bool) -> None:
    """Twice the same to the bit, with PyTorch's deterministic algorithms (trainer.deterministic)."""
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    model = Sam(replace(SAM_CONFIGS["vit_tiny"], drop_path=0.2, dropout=0.1)).train()
    ends = []
    for _ in range(2):
        torch.manual_seed(1)  # of dropout and drop path
        sam, batch = deepcopy(model).to(device), scenes(0).to(device)
        optimizer, _ = build_optimizer(sam, AdamWConfig(), 10)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = step_loss(sam, batch, PromptSampler(num_points=2), SamLoss())
        loss.backward()
        optimizer.step()
        ends.append((loss.detach(), sam.state_dict()))
    (loss, weights), (again, others) = ends
    assert torch.isfinite(loss) and torch.equal(loss, again)
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
    assert not torch.equal(weights["mask_decoder.iou_token.weight"].cpu(), model.mask_decoder.iou_token.weight)


@pytest.mark.parametrize("bf16", [False, True])
def test_memory_is_as_planned(device: torch.device, bf16: bool) -> None:
    """ViT-B at 1024 pixels with 16 masks; the moments of AdamW, which the step does not make here, are added."""
    config, sampler = SAM_CONFIGS["vit_b"], PromptSampler(num_points=1)
    sides = (config.image_size, 16) if device.type == "cuda" else (128, 2)
    config = replace(config, image_size=sides[0])
    settings: dict[str, Any] = {"images": 1, "masks": sides[1], "bf16": bf16, "activation_checkpointing": False}
    planned = step_cost(config, device="cuda", sampler=sampler, loss=SamLoss(), **settings)
    with torch.device(device):
        sam = Sam(config).train()
    batch = _batch(config.image_size, 1, sides[1]).to(device)

    def step() -> None:
        sam.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = step_loss(sam, batch, sampler, SamLoss())
        loss.backward()

    step()  # libraries make their work spaces
    sam.zero_grad()
    if device.type == "cpu":
        return
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    measured = (torch.cuda.max_memory_allocated() - before) / 1e9
    print(f"planned {planned.step_gb:.2f} GB beside weights and moments, measured {measured:.2f} GB")
    assert planned.memory_gb == pytest.approx(measured + planned.state_gb, rel=0.15)
    assert planned.step_gb == pytest.approx(measured, rel=0.2)


def test_a_compiled_encoder_agrees(device: torch.device) -> None:
    """Its embedding and its gradients; one block with windows and one without."""
    if device.type == "cuda" and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("Triton needs a C compiler")
    torch.manual_seed(0)
    encoder = Sam(replace(SAM_CONFIGS["vit_tiny"], encoder_depth=2, global_attn_indexes=(1,))).image_encoder.to(device)
    images = torch.randn(2, 3, 96, 96, device=device)
    embeddings, gradients = [], []
    for function in (encoder, torch.compile(encoder)):
        embeddings.append(function(images))
        gradients.append(torch.autograd.grad(embeddings[-1].square().mean(), list(encoder.parameters())))
    assert torch.allclose(*embeddings, rtol=1e-4, atol=1e-4 * embeddings[0].abs().max().item())
    largest = max(gradient.abs().max().item() for gradient in gradients[0])
    for (name, _), expected, found in zip(encoder.named_parameters(), *gradients, strict=True):
        assert (expected - found).abs().max().item() <= 1e-3 * largest, name


def test_the_trained_model_has_learned(trained: Sam, device: torch.device) -> None:
    """A guard for the other tests: its loss is well below that of a new model."""
    torch.manual_seed(0)
    new = Sam(trained.config).eval()
    losses = [
        step_loss(deepcopy(sam).to(device), scenes(0).to(device), CentreSampler(num_points=1), SamLoss()).item()
        for sam in (trained, new)
    ]
    assert losses[0] < 0.7 * losses[1], losses
