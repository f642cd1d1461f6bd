"""What runs beside the loop: files written whole, one row a step, speeds, the display, panels, loggers."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from rich.console import Console
from tiny_training import BlobData, blobs, checkpointing, fit, tiny_lit, tiny_trainer

from samtrain.modeling.trained_on import images_trained_on
from samtrain.panels import CAPTION, draw_panel, tile_panels
from samtrain.plain import from_plain
from samtrain.training.callbacks import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    MaskPanels,
    ParameterNorms,
    ProgressDisplay,
    Throughput,
    TrainedOn,
)
from samtrain.training.callbacks.norms import parts_of
from samtrain.training.loggers import AppendingCSVLogger, LoggerConfig, WandbConfig, make_loggers
from samtrain.types import Prompts

# ---- checkpoints


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    path, files = tmp_path / "last.ckpt", AtomicCheckpointIO()
    files.save_checkpoint({"step": 1}, path)
    (tmp_path / ".last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"last\.ckpt could not be written.*No space left.*Make room"):
        files.save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, path)
    assert files.load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_writing_replaces_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a checkpoint is being written the one of before can be read."""
    path, files = tmp_path / "deep" / "last.ckpt", AtomicCheckpointIO()
    files.save_checkpoint({"step": 1}, path)
    save, seen = torch.save, []

    def watched(content: Any, file: Any) -> None:
        save(content, file)
        seen.append(files.load_checkpoint(path))

    monkeypatch.setattr(torch, "save", watched)
    files.save_checkpoint({"step": 2}, path)
    assert seen == [{"step": 1}] and files.load_checkpoint(path) == {"step": 2}


def test_loading_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="[Ww]eights"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)


def scored(score: float, step: int) -> Any:
    """A trainer at the end of a validation."""
    trainer = SimpleNamespace(sanity_checking=False, global_step=step, saved=[])
    trainer.state = SimpleNamespace(fn="fit")
    trainer.callback_metrics = {"val/miou_1": torch.tensor(score), "train/loss": torch.tensor(1.0)}
    trainer.save_checkpoint = lambda path, **_: trainer.saved.append(path)
    return trainer


def test_best_is_the_highest_and_goes_on(tmp_path: Path) -> None:
    best = BestCheckpoint(path=tmp_path / "best.ckpt")
    saved = []
    for step, score in enumerate((0.3, 0.2, 0.5, 0.5)):
        trainer = scored(score, step)
        best.on_validation_end(trainer, None)  # type: ignore[arg-type]
        saved.append(bool(trainer.saved))
        again = BestCheckpoint(path=tmp_path / "best.ckpt")
        again.load_state_dict(best.state_dict())
        best = again
    assert saved == [True, False, True, False]
    assert (best.best_step, best.best_score, best.scores) == (2, 0.5, {"val/miou_1": 0.5})


def test_a_metric_that_is_not_measured_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'val/iou'.*val/miou_1"):
        BestCheckpoint(path=tmp_path, monitor="val/iou").on_validation_end(scored(0, 0), None)  # type: ignore[arg-type]


def test_no_checkpoint_comes_right_before_a_validation(tmp_path: Path) -> None:
    """Steps 4, 8 by number, 6, 12 and the last after a validation; 12 once, and only behind its validation."""
    seen: list[tuple[str, int]] = []

    class Follow(pl.Callback):
        def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(("validation", trainer.global_step))

        def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
            seen.append(("checkpoint", trainer.global_step))

    last = LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=4)
    tiny_trainer(tmp_path, max_steps=14, callbacks=[Follow(), last]).fit(tiny_lit(), BlobData())
    expected = [("checkpoint", 4), ("validation", 6), ("checkpoint", 6), ("checkpoint", 8), ("validation", 12)]
    assert seen == [*expected, ("checkpoint", 12), ("validation", 14), ("checkpoint", 14)]


def test_the_best_checkpoint_says_what_it_was_trained_on_as_the_last_one_does(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=6, callbacks=[TrainedOn(["ff", "0a"]), *checkpointing(tmp_path)])
    for name in ("best.ckpt", "last.ckpt"):
        assert images_trained_on(tmp_path / "checkpoints" / name) == {f"{255:016x}", f"{10:016x}"}, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate_grad_batches": 4}, "every 6 batches falls between two steps of 4 batches"),
        ({"check_val_every_n_epoch": 1}, "check_val_every_n_epoch=1"),
        ({"callbacks": []}, "LastCheckpoint comes before BestCheckpoint"),
    ],
)
def test_settings_that_would_not_repeat_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    if "callbacks" in changes:
        changes = {"callbacks": checkpointing(tmp_path)[::-1]}
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, max_steps=6, **changes).fit(tiny_lit(), BlobData())


# ---- metrics.csv


def read(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_one_row_a_step_and_columns_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = AppendingCSVLogger(path)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_metrics({"a": 2.0}, step=2)
    logger.log_metrics({"b": 0.1}, step=2)
    logger.save()
    logger.log_metrics({"c": 1e-7, "speed/x": 3.0, "epoch": 0}, step=2)  # after it was written
    logger.log_metrics({"speed/x": 3.0}, step=3)
    logger.log_metrics({"a": float("nan")}, step=4)
    logger.finalize("success")
    assert read(path) == [
        {"step": "1", "a": "1", "b": "", "c": ""},
        {"step": "2", "a": "2", "b": "0.1", "c": "1e-07"},
        {"step": "4", "a": "nan", "b": "", "c": ""},
    ]


def test_numbers_keep_every_bit_of_a_float32(tmp_path: Path) -> None:
    logger = AppendingCSVLogger(tmp_path / "metrics.csv")
    values = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-100, 100).div(5)
    for step, value in enumerate(values.tolist()):
        logger.log_metrics({"x": value, "count": 12_345_678_901.0}, step=step)
    logger.save()
    rows = read(tmp_path / "metrics.csv")
    assert torch.equal(torch.tensor([float(row["x"]) for row in rows]), values)
    assert rows[0]["count"] == "12345678901"


def test_what_lies_behind_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = AppendingCSVLogger(path)
    for step in range(1, 6):
        first.log_metrics({"a": step}, step=step)
    first.log_metrics({"b": 5}, step=5)
    first.save()
    with open(path, "a") as file:
        file.write("6,7")  # a line that a kill cut short
    again = AppendingCSVLogger(path)
    again.take_back(3)
    for step in range(4, 6):
        again.log_metrics({"a": step}, step=step)
    again.log_metrics({"b": 5}, step=5)
    again.save()
    other = AppendingCSVLogger(tmp_path / "other.csv")
    for step in range(1, 6):
        other.log_metrics({"a": step}, step=step)
    other.log_metrics({"b": 5}, step=5)
    other.save()
    assert path.read_bytes() == (tmp_path / "other.csv").read_bytes()


def test_the_last_row_of_an_earlier_process_is_added_to(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    AppendingCSVLogger(path).log_metrics({"a": 1}, step=0)
    first = AppendingCSVLogger(path)
    first.log_metrics({"a": 1}, step=1)
    first.save()
    second = AppendingCSVLogger(path)
    second.log_metrics({"a": 2, "b": 3}, step=1)
    second.log_metrics({"a": 4}, step=2)
    second.save()
    assert read(path) == [{"step": "1", "a": "2", "b": "3"}, {"step": "2", "a": "4", "b": ""}]


def test_loggers_by_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [type(logger) for logger in make_loggers(tmp_path, LoggerConfig())] == [AppendingCSVLogger]
    with pytest.raises(ValueError, match="logger.mlflow is not a setting; logger has csv, wandb, tensorboard, extra"):
        from_plain(LoggerConfig, {"mlflow": {}}, "logger")
    with pytest.raises(ValueError, match="logger.csv.path is not a setting"):
        LoggerConfig(csv={"path": "x"})
    with pytest.raises(ValueError, match="logger.tensorboard.sizes is not a setting; logger.tensorboard has .*log_graph"):
        LoggerConfig(tensorboard={"sizes": 1})
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(ValueError, match=r"wandb is not installed: pip install 'samtrain\[wandb\]'"):
        make_loggers(tmp_path, LoggerConfig(wandb=WandbConfig(offline=True)))


def test_the_run_id_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    config = LoggerConfig(wandb=WandbConfig(offline=True))
    ids = [make_loggers(tmp_path, config)[1]._id for _ in range(2)]  # type: ignore[attr-defined]
    assert ids[0] == ids[1] and len(ids[0]) == 8


def test_wandb_is_imported_only_where_it_is_used() -> None:
    """It takes seconds, and most runs do without."""
    for path in (Path(__file__).parents[2] / "samtrain").rglob("*.py"):
        assert not any(line.startswith(("import wandb", "from wandb")) for line in path.read_text().splitlines()), path


# ---- speeds


def test_waiting_for_data_is_told_from_work_and_from_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("samtrain.training.callbacks.display.time", SimpleNamespace(perf_counter=lambda: now[0]))
    throughput = Throughput()
    module = SimpleNamespace(waiting_since=0.0)
    trainer: Any = SimpleNamespace(world_size=2, global_step=1, log_every_n_steps=10)
    batch = blobs(0)  # 2 images, 5 objects
    for _ in range(2):
        module.waiting_since = now[0]
        now[0] += 0.5
        throughput.on_train_batch_start(trainer, module, batch, 0)  # type: ignore[arg-type]
        now[0] += 1.5
        throughput.on_train_batch_end(trainer, module, None, batch, 0)  # type: ignore[arg-type]
        now[0] += 9.0  # a validation, after which the module notes the time again
    assert throughput.speeds() == {"images_per_s": 2.0, "masks_per_s": 5.0, "data_wait": 0.25}


def shown(tmp_path: Path, terminal: bool, width: int = 160) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=width)
    display = ProgressDisplay(every_seconds=0.0, console=console)
    callbacks = [Throughput(), display]
    tiny_trainer(tmp_path, max_steps=7, callbacks=callbacks, enable_checkpointing=False, enable_progress_bar=True).fit(
        tiny_lit(), BlobData()
    )
    return text.getvalue()


def test_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    lines = shown(tmp_path, terminal=False).splitlines()
    assert lines[-1].startswith("step 7/7  loss ")
    for part in ("images/s", "masks/s", "data wait", "left 0:00"):
        assert part in lines[-1]
    assert any(line.startswith("step 6/7  val/miou_1 ") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_one_live_line_in_a_terminal(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True)
    assert "step 7/7" in text and "validation, batch 2" in text and "val/miou_1" in text
    assert not (tmp_path / "metrics.csv").read_text().count("speed"), "wall-clock values stay out of metrics.csv"


def test_a_narrow_terminal_shows_what_matters_most_and_cuts_nothing(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True, width=46)
    assert "step 7/7" in text and "left 0:00" in text and "\u2026" not in text and "data wait" not in text


def test_norms_of_parts_on_demand(tmp_path: Path) -> None:
    lit, norms = tiny_lit(), ParameterNorms(every_n_steps=2)
    tiny_trainer(tmp_path, max_steps=5, callbacks=[norms, *checkpointing(tmp_path)]).fit(lit, BlobData())
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert [step for step, row in sorted(rows.items()) if row["norms/param/neck"]] == [2, 4]
    parts = parts_of(lit.sam)
    assert sum(len(each) for each in parts.values()) == len(list(lit.sam.parameters()))
    assert list(parts)[0] == "patch_embed" and {"block_00", "neck", "prompt_encoder", "mask_decoder"} <= set(parts)
    # all parts' gradients together are the gradient
    grads = [float(rows[4][f"norms/grad/{part}"]) ** 2 for part in parts if rows[4].get(f"norms/grad/{part}")]
    assert sum(grads) ** 0.5 == pytest.approx(float(rows[4]["train/grad_norm"]), rel=1e-4)
    with pytest.raises(ValueError, match="norms_every_steps"):
        ParameterNorms(every_n_steps=0)


# ---- panels


def test_a_sheet_for_each_validation(tmp_path: Path) -> None:
    panels = MaskPanels(directory=tmp_path / "panels", num_objects=3, side=64)
    trainer = tiny_trainer(tmp_path, max_steps=6, callbacks=[panels, *checkpointing(tmp_path)])
    trainer.fit(tiny_lit(), BlobData())
    (path,) = (tmp_path / "panels").iterdir()
    assert path.name == "step_000006.png"
    gap, columns = 6, 1 + 5  # the object, then five clicks
    assert Image.open(path).size == (columns * (64 + gap) + gap, 3 * (64 + CAPTION + gap) + gap)


def prompts_of(*tokens: tuple[float, float, int]) -> Prompts:
    return Prompts(torch.tensor([[t[:2] for t in tokens]]), torch.tensor([[t[2] for t in tokens]]))


def test_a_panel_shows_masks_and_clicks_where_they_are() -> None:
    image = np.full((50, 100, 3), 128, dtype=np.uint8)
    mask = np.zeros((1, 50, 100), dtype=bool)
    mask[0, 10:30, 20:60] = True
    tile = draw_panel(image, mask, prompts_of((80, 40, 0), (30, 20, 1), (0, 0, -1)), side=200)
    assert tile.shape == (200 + CAPTION, 200, 3) and tile.dtype == np.uint8
    photo = tile[CAPTION : CAPTION + 100]
    assert (tile[CAPTION + 100 :] == 255).all(), "a wide photo leaves paper below"
    assert (photo[50, 110] != 128).any() and (photo[90, 20] == 128).all()
    green, red = photo[38, 60].astype(int), photo[78, 160].astype(int)
    assert green[1] > green[0] + 50 and red[0] > red[1] + 50
    assert (photo[0, 0] == 128).all(), "padding tokens are not drawn"


def test_panels_stay_within_odd_images() -> None:
    """One pixel, no mask, no prompt, a box past the edge."""
    assert draw_panel(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 1), bool), side=32).shape == (32 + CAPTION, 32, 3)
    box = prompts_of((-5, -5, 2), (500, 3, 3))
    tile = draw_panel(np.zeros((7, 3, 3), np.uint8), np.zeros((0, 7, 3), bool), box, side=32, caption="a" * 99)
    sheet = tile_panels([[tile, tile], [tile]], gap=4)
    assert sheet.shape == (2 * (32 + CAPTION + 4) + 4, 2 * 36 + 4, 3)
    assert (sheet[-30:, -30:] == 255).all()


def test_a_long_validation_says_where_it_is(tmp_path: Path) -> None:
    """Also without a terminal; between two lines there is time."""
    lines = shown(tmp_path, terminal=False).splitlines()
    assert any(line.startswith("step 6/7  validation, batch 2 of ") for line in lines), lines
