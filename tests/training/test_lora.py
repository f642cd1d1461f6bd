"""LoRA trains a difference to frozen weights, which nobody who loads the checkpoint has to know about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny_training import BlobData, blobs, tiny_lit, tiny_sam, tiny_trainer, weights_of

from samtrain.modeling import Sam, load_sam
from samtrain.modeling.lora import KEY, add_lora, save_adapter
from samtrain.training.lit_sam import LitSam
from samtrain.training.optim import LoraConfig, OptimConfig
from samtrain.types import Prompts

LAYERS = ("image_encoder.*.attn.qkv", "mask_decoder.transformer.*")
TRAINABLE = ["mask_decoder.iou_token.weight"]
STEPS = 8  # last.ckpt is written after every fourth


class Stopped(Exception):
    pass


class StopsAfter(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Stopped


def train(run_dir: Path, stop: int | None = None) -> LitSam:
    """Trains, or resumes what `run_dir` holds."""
    last = run_dir / "checkpoints" / "last.ckpt"
    lit = tiny_lit(lora=LoraConfig(rank=2, alpha=4.0, layers=LAYERS), trainable=TRAINABLE)
    trainer = tiny_trainer(run_dir, max_steps=STEPS)
    trainer.callbacks += [StopsAfter(stop)] if stop else []
    trainer.fit(lit, BlobData(), ckpt_path=last if last.is_file() else None)
    return lit


def answers(sam: Sam) -> torch.Tensor:
    """Returns logits of three clicks on two images."""
    batch, sam = blobs(5), sam.eval()
    with torch.no_grad():
        embeddings = sam.encode(sam.preprocess(batch.images, batch.input_sizes))
        coords = torch.tensor([[[9.0, 4.0]], [[20.0, 11.0]], [[3.0, 18.0]]])
        return sam.decode(embeddings, torch.tensor([0, 0, 1]), Prompts(coords, torch.ones(3, 1).long()), True).low_res_logits


def chosen(key: str) -> bool:
    return key in TRAINABLE or key.endswith(".attn.qkv.weight") or key.startswith("mask_decoder.transformer.")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LitSam]:
    folder = tmp_path_factory.mktemp("lora")
    return folder, train(folder)


def test_it_begins_as_the_model_that_it_is_added_to() -> None:
    plain, changed = tiny_sam(), tiny_sam()
    names = add_lora(changed, LAYERS, rank=2, alpha=4.0, seed=0)
    assert "image_encoder.blocks.1.attn.qkv" in names and any(name.startswith("mask_decoder.transformer.") for name in names)
    assert torch.equal(answers(plain), answers(changed))
    # each difference counts, in the encoder as in the decoder, where weights are read without calling their layers
    for name in names:
        difference = changed.get_submodule(name).parametrizations.weight[0].lora_B
        difference.data.normal_(std=3)
        assert not torch.equal(answers(plain), answers(changed)), name
        difference.data.zero_()


def test_a_checkpoint_holds_a_model_without_lora(run: tuple[Path, LitSam]) -> None:
    folder, lit = run
    found, start = load_sam(folder / "checkpoints" / "last.ckpt"), tiny_sam().state_dict()
    state = found.state_dict()
    assert state.keys() == start.keys() and torch.allclose(answers(found), answers(lit.sam), atol=1e-6)
    changed = {key for key in start if not torch.equal(state[key], start[key])}
    assert changed and all(chosen(key) for key in changed)
    assert {"image_encoder.blocks.0.attn.qkv.weight", "mask_decoder.transformer.layers.0.mlp.lin1.weight"} <= changed
    difference = state["image_encoder.blocks.0.attn.qkv.weight"] - start["image_encoder.blocks.0.attn.qkv.weight"]
    assert torch.linalg.matrix_rank(difference, rtol=1e-3) == 2
    assert KEY in torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)


def test_a_stopped_run_ends_as_one_that_was_not(run: tuple[Path, LitSam], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop=5)
    train(tmp_path)
    found, expected = (weights_of(folder / "checkpoints" / "last.ckpt") for folder in (tmp_path, run[0]))
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_peft_reads_the_adapter(run: tuple[Path, LitSam], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the reference: pip install peft")
    found = torch.load(run[0] / "checkpoints" / "best.ckpt", weights_only=True)[KEY]
    save_adapter(found["differences"], tmp_path, rank=found["rank"], alpha=found["alpha"])
    theirs = peft.PeftModel.from_pretrained(tiny_sam(), tmp_path).merge_and_unload().state_dict()
    ours = load_sam(run[0] / "checkpoints" / "best.ckpt").state_dict()
    adapted = [key for key in ours if key.removesuffix(".weight") + ".lora_A.weight" in found["differences"]]
    assert len(adapted) > 10 and all(torch.allclose(theirs[key], ours[key], atol=1e-6) for key in adapted)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optim.lora has 'mask_decoder.iou_token' among its layers"):
        add_lora(tiny_sam(), ["mask_decoder.iou_token"], rank=2, alpha=2.0, seed=0)
    with pytest.raises(ValueError, match=r"optim.lora has rank 0"):
        LoraConfig(rank=0)
    with pytest.raises(ValueError, match=r"optim.lora and optim.ema_decay are both set"):
        OptimConfig(lora=LoraConfig(), ema_decay=0.9)
