"""The system under Lightning: what trains, what is logged, what a checkpoint holds, and what randomness hangs on."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import EMAWeightAveraging
from tiny_training import (
    TINY,
    BlobData,
    ListData,
    blobs,
    checkpointing,
    fit,
    join,
    tiny_lit,
    tiny_sam,
    tiny_trainer,
    weights_of,
)
from torch import Tensor

from samtrain.interact import BatchDecoder, interact
from samtrain.modeling import load_sam
from samtrain.prompts import CentreSampler, PromptSampler, seeded_generator
from samtrain.training.callbacks import AtomicCheckpointIO, LastCheckpoint
from samtrain.training.lit_sam import PROMPTS, SCHEDULE, LitSam, freeze
from samtrain.types import Batch, Prompts

CALM = replace(TINY, drop_path=0.0, dropout=0.0)


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv") as file:
        return list(csv.DictReader(file))


def train(run_dir: Path, lit: LitSam, batches: list[Batch], steps: int, **changes: Any) -> pl.Trainer:
    """On given batches, without validation or checkpoints."""
    settings: dict[str, Any] = {"callbacks": [], "enable_checkpointing": False, "limit_val_batches": 0}
    settings |= {"gradient_clip_val": None, "plugins": []}
    trainer = tiny_trainer(run_dir, max_steps=steps, **(settings | changes))
    trainer.fit(lit, ListData(batches))
    return trainer


# ---- what trains


def test_globs_say_what_trains() -> None:
    sam = tiny_sam()
    freeze(sam, ["mask_decoder.*", "image_encoder.neck.*"])
    trains = {name for name, p in sam.named_parameters() if p.requires_grad}
    assert trains == {name for name, _ in sam.named_parameters() if name.startswith(("mask_decoder.", "image_encoder.neck"))}


def test_a_glob_that_matches_nothing_names_the_parts() -> None:
    with pytest.raises(ValueError, match=r"'decoder\.\*'.*image_encoder\.\*, prompt_encoder\.\*, mask_decoder\.\*"):
        tiny_lit(trainable=["decoder.*"])
    with pytest.raises(ValueError, match=r"optim\.trainable is empty"):
        tiny_lit(trainable=[])


def test_a_frozen_encoder_costs_nothing(tmp_path: Path) -> None:
    """No gradient, no optimiser state, no drop path, no activations kept; the same weights afterwards."""
    lit = tiny_lit(trainable=["mask_decoder.*"])
    before = {k: v.clone() for k, v in lit.sam.state_dict().items()}
    trainer = tiny_trainer(tmp_path, max_steps=7)
    trainer.fit(lit, BlobData())  # with a validation in between, after which modes are put back
    lit.train()
    assert not any(m.training for part in (lit.sam.image_encoder, lit.sam.prompt_encoder) for m in part.modules())
    assert all(m.training for m in lit.sam.mask_decoder.modules())
    assert not lit.encode(blobs(0)).requires_grad
    after = lit.sam.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("mask_decoder.") for key in changed)
    assert len(trainer.optimizers[0].state) == len(list(lit.sam.mask_decoder.parameters()))


def test_compiling_the_encoder_keeps_the_keys() -> None:
    lit = tiny_lit(compile_encoder=True)
    assert lit.sam.image_encoder._compiled_call_impl is not None
    assert lit.state_dict().keys() == tiny_lit().state_dict().keys()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_encoder_trains_the_same(tmp_path: Path) -> None:
    rows = []
    for setting in (False, True):
        lit = tiny_lit(sam=tiny_sam(config=CALM), compile_encoder=setting)
        train(tmp_path / str(setting), lit, [blobs(0)], 1)
        rows.append({name: float(text) for name, text in rows_of(tmp_path / str(setting))[0].items()})
    assert rows[0]["train/loss"] == pytest.approx(rows[1]["train/loss"], rel=1e-3)
    assert rows[0]["train/grad_norm"] == pytest.approx(rows[1]["train/grad_norm"], rel=1e-2)


def test_activation_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    weights = []
    for setting in (False, True):
        lit = tiny_lit(activation_checkpointing=setting)
        train(tmp_path / str(setting), lit, [blobs(0)], 1)
        assert lit.sam.image_encoder.grad_checkpointing is setting
        weights.append(lit.sam.state_dict())
    for key in weights[0]:
        assert torch.equal(weights[0][key], weights[1][key]), key


def test_bfloat16_trains_much_the_same(tmp_path: Path) -> None:
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        lit = tiny_lit(sam=tiny_sam(config=CALM), prompts=CentreSampler(num_points=2))
        train(tmp_path / precision, lit, [blobs(0)] * 3, 3, precision=precision, gradient_clip_val=0.1)  # as all scales do
        losses.append([float(row["train/loss"]) for row in rows_of(tmp_path / precision)])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # bfloat16 has three digits
    with pytest.raises(ValueError, match="trainer.precision=bf16-mixed or 32-true"):
        lit = tiny_lit()
        lit.trainer = type("Trainer", (), {"precision": "16-mixed"})()  # type: ignore[assignment]
        lit.on_fit_start()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_by_their_norm(tmp_path: Path, precision: str) -> None:
    """To 0.1, which is far below what the log says that they had."""
    norms: list[float] = []
    lit = tiny_lit()

    def measure(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    class Watch(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.optimizers[0].register_step_post_hook(measure)

    train(tmp_path, lit, [blobs(0)], 1, precision=precision, gradient_clip_val=0.1, callbacks=[Watch()])
    assert norms == [pytest.approx(0.1, rel=1e-3)]
    assert float(rows_of(tmp_path)[0]["train/grad_norm"]) > 0.2


def test_accumulation_gives_the_big_batchs_step(tmp_path: Path) -> None:
    """An object weighs the same, however many its micro-batch has; each step is logged once, as the mean over its objects."""
    small = [blobs(k, counts=(1 + 3 * (k % 2), 2)) for k in range(4)]
    for name, batches, accumulate in (("small", small, 2), ("big", [join(small[:2]), join(small[2:])], 1)):
        lit = tiny_lit(sam=tiny_sam(config=CALM), prompts=CentreSampler(num_points=2))
        train(tmp_path / name, lit, batches, 2, accumulate_grad_batches=accumulate, precision="64-true")
    assert [row["images_seen"] for row in rows_of(tmp_path / "small")] == ["4", "8"]
    assert_close_rows(tmp_path / "small", tmp_path / "big")


def assert_close_rows(here: Path, there: Path) -> None:
    """Asserts that two runs in double precision logged equal rows of two steps, but for the rounding of the log to float32.

    The first step tells of the gradients, the second of how they were used. In single precision there is no such bound: a sum
    in another order may move a ReLU's input across zero, which changes the second step's gradient by 0.2 %.
    """
    rows_here, rows_there = rows_of(here), rows_of(there)
    assert [row["step"] for row in rows_here] == [row["step"] for row in rows_there] == ["1", "2"]
    for row_here, row_there in zip(rows_here, rows_there, strict=True):
        assert row_here.keys() == row_there.keys()
        for name in row_here:
            assert float(row_here[name]) == pytest.approx(float(row_there[name]), rel=1e-6), name


# ---- what randomness hangs on


def test_draws_hang_on_seed_and_step_alone(tmp_path: Path) -> None:
    """Whatever else draws from PyTorch's generators: equal losses; another seed: others."""

    class Noise(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            torch.rand(7)

    batches = [blobs(k) for k in range(3)]
    losses = {}
    for name, seed, callbacks in (("plain", 1, []), ("noise", 1, [Noise()]), ("other", 2, [])):
        torch.manual_seed(sum(map(ord, name)))
        lit = tiny_lit(sam=tiny_sam(0), seed=seed)
        torch.manual_seed(sum(map(ord, name)))
        train(tmp_path / name, lit, batches, 3, callbacks=callbacks)
        losses[name] = [row["train/loss"] for row in rows_of(tmp_path / name)]
    assert losses["plain"] == losses["noise"]
    assert all(a != b for a, b in zip(losses["plain"], losses["other"], strict=True))


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_draw_other_prompts_in_the_same_order(tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens at each interaction hangs on seed and step, where the clicks fall on the rank as well."""
    drawn: dict[str, list[int]] = {"schedule": [], "first": []}

    class Noted(PromptSampler):
        def schedule(self, generator: torch.Generator) -> list[str]:
            drawn["schedule"].append(generator.initial_seed())
            return super().schedule(generator)

        def first(self, masks: Tensor, valid: Tensor, generator: torch.Generator) -> Prompts:
            drawn["first"].append(generator.initial_seed())
            return super().first(masks, valid, generator)

    monkeypatch.setattr(LitSam, "global_rank", rank)
    train(tmp_path, tiny_lit(prompts=Noted(num_points=2), seed=3), [blobs(k) for k in range(3)], 3)
    assert drawn["schedule"] == [seeded_generator("cpu", 3, SCHEDULE, step).initial_seed() for step in range(3)]
    assert drawn["first"] == [seeded_generator("cpu", 3, PROMPTS, step, rank).initial_seed() for step in range(3)]


# ---- what is logged


def test_a_step_logs_each_term_of_each_interaction(tmp_path: Path) -> None:
    sampler = PromptSampler(num_points=2, num_mask_only=2)
    lit = tiny_lit(prompts=sampler, images_seen=100)
    train(tmp_path, lit, [blobs(k) for k in range(2)], 2)
    first, second = rows_of(tmp_path)
    assert {f"train/{term}_{i}" for term in ("focal", "dice", "iou") for i in range(5)} <= first.keys()
    total = sum(20 * float(first[f"train/focal_{i}"]) + float(first[f"train/dice_{i}"]) for i in range(5)) / 5
    total += sum(float(first[f"train/iou_{i}"]) for i in range(5)) / 5
    assert float(first["train/loss"]) == pytest.approx(total, rel=1e-5)
    assert [row["images_seen"] for row in (first, second)] == ["102", "104"]
    assert [row["masks_seen"] for row in (first, second)] == ["5", "10"]
    assert float(first["train/lr"]) == pytest.approx(1e-3 / 3)
    assert float(first["train/grad_norm"]) > 0


def test_only_every_nth_step_and_the_last_are_logged(tmp_path: Path) -> None:
    train(tmp_path, tiny_lit(), [blobs(k) for k in range(5)], 5, log_every_n_steps=2)
    assert [row["step"] for row in rows_of(tmp_path)] == ["2", "4", "5"]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    lit = tiny_lit()
    lit.sam.mask_decoder.iou_token.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the loss is nan at step 1.*blobs_0_0, blobs_0_1.*learning_rate_factor"):
        train(tmp_path, lit, [blobs(0)], 1)


def test_a_nan_between_two_logged_steps_is_not_saved(tmp_path: Path) -> None:
    """The step's images are named, and the run can be resumed from the checkpoint before."""
    batches = [blobs(k) for k in range(6)]
    batches[2].weights[:] = float("nan")
    callbacks = [LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=2)]
    settings: dict[str, Any] = {"callbacks": callbacks, "enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    with pytest.raises(ValueError, match="the loss is nan at step 3, in the batch of the images blobs_2_0, blobs_2_1"):
        train(tmp_path, tiny_lit(), batches, 6, log_every_n_steps=100, **settings)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """Even if no loss has shown it yet: the last step's gradient may be infinite."""

    class Break(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            if trainer.global_step == 4:
                pl_module.sam.mask_decoder.iou_token.weight.data[0, 0] = float("inf")

    callbacks = [Break(), LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=2)]
    settings: dict[str, Any] = {"callbacks": callbacks, "enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    with pytest.raises(ValueError, match=r"sam.mask_decoder.iou_token.weight is not finite after step 4.*blobs_3_0"):
        train(tmp_path, tiny_lit(), [blobs(k) for k in range(6)], 6, log_every_n_steps=100, **settings)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


# ---- validation


def centre_ious(lit: LitSam, batch: Batch, sampler: CentreSampler, resolution: str) -> list[tuple[Tensor, Tensor]]:
    """By hand: (IoU of the chosen mask, of the best one) of each turn, without the padding."""
    lit.eval()
    with torch.no_grad():
        decoder = BatchDecoder(lit.sam, lit.encode(batch), batch)
        valid = batch.valid()[batch.image_index]
        turns = interact(
            decoder,
            batch.masks,
            sampler,
            schedule=sampler.schedule(),
            valid_NHW=valid,
            generator=torch.Generator(),
        )
        found = []
        for turn in turns:
            logits = turn.output.low_res_logits.flatten(0, 1)[:, None]
            truth, inside = batch.masks[:, None], valid[:, None]
            if resolution == "input":
                logits = decoder.to_frame(logits)
            else:  # half of a cell's pixels or more
                cell = batch.masks.shape[-1] // logits.shape[-1]
                truth, inside = (F.avg_pool2d(each.float(), cell) >= 0.5 for each in (truth, inside))
            masks = (logits[:, 0] > 0).view(len(truth), -1, *truth.shape[2:]) & inside
            truth = truth & inside
            iou = (masks & truth).sum((2, 3)) / (masks | truth).sum((2, 3)).clamp(min=1)
            found.append((iou.gather(1, turn.chosen[:, None])[:, 0], iou.amax(dim=1)))
    return found


@pytest.mark.parametrize("resolution", ["input", "decoder"])
def test_validation_is_the_centre_protocol(tmp_path: Path, resolution: str) -> None:
    lit = tiny_lit(val_resolution=resolution)
    batches = [blobs(1), blobs(2)]
    batches[1].weights[-1] = 0  # only fills the batch
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.validate(lit, ListData(batches, validation=batches), verbose=False)
    weights = torch.cat([b.weights for b in batches])

    turns = [centre_ious(lit, batch, CentreSampler(num_points=5), resolution) for batch in batches]
    boxes = CentreSampler(num_points=1, first="box")
    box = [centre_ious(lit, batch, boxes, resolution)[0][0] for batch in batches]

    def mean(values: list[Tensor]) -> Any:
        return pytest.approx(float((torch.cat(values) * weights).sum() / weights.sum()), rel=1e-5)

    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for clicks in (1, 2, 3, 5):
        assert metrics[f"val/miou_{clicks}"] == mean([turn[clicks - 1][0] for turn in turns])
    assert metrics["val/oracle_miou_1"] == mean([turn[0][1] for turn in turns])
    assert metrics["val/box_miou"] == mean(box)
    assert len(metrics) == 6
    assert [row["step"] for row in rows_of(tmp_path)] == ["0"], "before training is step 0"


# ---- checkpoints


def test_a_checkpoint_is_plain_and_load_sam_reads_it(tmp_path: Path) -> None:
    lit = fit(tmp_path, max_steps=6)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["sam_config"] == TINY.to_dict()
    assert (last["images_seen"], last["masks_seen"]) == (12, 30)
    assert all(key.startswith("sam.") for key in last["state_dict"])
    sam = load_sam(tmp_path / "checkpoints" / "best.ckpt")
    assert sam.config == TINY
    for key, value in sam.state_dict().items():
        assert torch.equal(value, lit.sam.state_dict()[key]), key


def test_going_on_goes_on_counting(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=4)
    lit = fit(tmp_path, max_steps=6)
    assert (lit.images_seen, int(lit.masks_seen)) == (12, 30)
    assert [row["images_seen"] for row in rows_of(tmp_path)] == ["2", "4", "6", "8", "10", "12"]


@pytest.mark.parametrize("average", [False, True])
def test_going_on_with_several_batches_a_step(tmp_path: Path, average: bool) -> None:
    """A stop and a new start change no bit, with accumulation and with a weight average."""

    class Stop(pl.Callback):
        """In the middle of the sixth step, the fourth having been saved."""

        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.fit_loop.total_batch_idx == 11:
                raise KeyError("stop")

    def go_on(run_dir: Path, *callbacks: pl.Callback) -> None:
        averaging = [EMAWeightAveraging(decay=0.9, use_buffers=False)] if average else []
        changes = {"accumulate_grad_batches": 2, "val_check_interval": 12}
        fit(run_dir, max_steps=7, callbacks=[*averaging, *callbacks, *checkpointing(run_dir)], **changes)

    with pytest.raises(KeyError, match="stop"):
        go_on(tmp_path / "stopped", Stop())
    assert torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    go_on(tmp_path / "stopped")
    go_on(tmp_path / "whole")
    assert (tmp_path / "stopped" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    for name in ("best", "last"):
        here, there = (weights_of(tmp_path / run / "checkpoints" / f"{name}.ckpt") for run in ("stopped", "whole"))
        assert all(torch.equal(here[key], there[key]) for key in there), name


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=4)
    lit = tiny_lit(sam=tiny_sam(config=replace(TINY, decoder_mlp_dim=64)))
    with pytest.raises(ValueError, match=r"decoder_mlp_dim: 32 there, 64 here"):
        tiny_trainer(tmp_path, max_steps=6).fit(lit, BlobData(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


def test_ema_is_what_is_validated_and_loaded(tmp_path: Path) -> None:
    """The average, by hand: in best.ckpt, in load_sam, and gone on with after a stop."""

    class Follow(pl.Callback):
        average: dict[str, Tensor] | None = None

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            now = {key: value.clone() for key, value in pl_module.state_dict().items()}
            before = self.average or now  # it begins with the first step's weights
            self.average = {key: 0.9 * before[key] + 0.1 * value for key, value in now.items()}

    follow = Follow()

    def go_on(max_steps: int, **changes: Any) -> None:
        callbacks = [EMAWeightAveraging(decay=0.9, use_buffers=False), follow, *checkpointing(tmp_path)]
        fit(tmp_path, max_steps=max_steps, callbacks=callbacks, **changes)

    go_on(4, limit_val_batches=0)
    go_on(6)  # validation and best.ckpt
    assert follow.average is not None
    best, last = (weights_of(tmp_path / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    raw = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
    for key, value in load_sam(tmp_path / "checkpoints" / "best.ckpt").state_dict().items():
        torch.testing.assert_close(best[f"sam.{key}"], follow.average[f"sam.{key}"], rtol=1e-5, atol=1e-6)
        assert torch.equal(value, best[f"sam.{key}"])
        assert torch.equal(best[f"sam.{key}"], last[f"sam.{key}"])
    assert any(not torch.equal(raw[key], last[key]) for key in raw)
