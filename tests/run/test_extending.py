"""What a user adds without editing a file of ours: a module on PYTHONPATH, named on the command line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samtrain.modeling.build import load_sam, sam_config
from samtrain.modeling.checkpoints import save_official
from samtrain.modeling.sam import Sam

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''
from dataclasses import dataclass

import numpy as np
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger

from samtrain.data import ArrayDataConfig
from samtrain.data_engine.annotators import SimulatedAnnotator
from samtrain.losses import SamLoss
from samtrain.prompts import FIRST, POINT, PromptSampler


class TwoClicks:
    """A prompt sampler with settings of its own."""

    def __init__(self, *, more: int = 1) -> None:
        self.more, self.inner = more, PromptSampler(num_points=more, box_probability=0.0)

    def schedule(self, generator):
        return [FIRST] + [POINT] * self.more

    def first(self, masks, valid, generator):
        return self.inner.first(masks, valid, generator)

    def next(self, prompts, masks, logits, valid, generator):
        return self.inner.next(prompts, masks, logits, valid, generator)


class HalfLoss(SamLoss):
    """SamLoss with one more setting."""

    def __init__(self, *, scale: float = 0.5, **settings) -> None:
        super().__init__(**settings)
        self.scale = scale

    def interaction_weight(self, num_interactions: int) -> float:
        return self.scale * super().interaction_weight(num_interactions)


@dataclass(frozen=True, kw_only=True)
class Squares(ArrayDataConfig):
    """A data set that is drawn."""

    side: int = 64
    count: int = 4

    def images(self, split):
        first = {"pool": 8, "val": 20, "test": 24}[split]  # no image is in two splits
        for number in range(self.count if split == "pool" else 2):
            mask = np.zeros((self.side, self.side), dtype=bool)
            mask[first + number : 40, 8:40] = True
            yield f"{split}_{number}", np.stack([mask * 255] * 3, axis=-1).astype(np.uint8), [mask]


class FirstObject(SimulatedAnnotator):
    """An annotator that draws one object per image."""

    def annotate(self, image, predictor):
        print("FirstObject annotates", image.key)
        return super().annotate(image, predictor)


class Ends(Callback):
    def __init__(self, *, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer, pl_module) -> None:
        open(self.path, "w").write(str(trainer.global_step))


class MyLogger(CSVLogger):
    pass
'''
SMALL = [
    "data_dir=shards", "scale.image_size=64", "loader.batch_size=2", "trainer.images_per_step=2", "loader.max_masks=2",
    "trainer.accelerator=cpu", "scale.checkpoint_every_steps=1", "scale.log_every_steps=1", "callbacks.panels=0",
]  # fmt: skip
DATA = ["~data", "+data={_target_: mine.Squares, side: 64, count: 4}"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def samtrain(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(folder)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "samtrain", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600)


def test_sampler_loss_data_encoder_callback_and_logger_of_ones_own(folder: Path) -> None:
    answer = samtrain(
        folder, "+experiment=pretrain", *SMALL, *DATA, "run_dir=run", "trainer.max_steps=2",
        "model.name=timm/test_vit", "~prompts", "+prompts={_target_: mine.TwoClicks, more: 2}",
        "loss._target_=mine.HalfLoss", "+loss.scale=0.25", "callbacks.extra=[{_target_: mine.Ends, path: ends.txt}]",
        "logger.extra=[{_target_: mine.MyLogger, save_dir: own}]", "+trainer.extra.profiler=simple",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Profiler Report" in answer.stdout + answer.stderr
    assert (folder / "ends.txt").read_text() == "2"
    assert list((folder / "own").rglob("metrics.csv"))
    # three interactions, a click and two more
    with open(folder / "run" / "metrics.csv") as file:
        columns = next(csv.reader(file))
    assert {"train/focal_0", "train/focal_2"} <= set(columns) and "train/focal_3" not in columns
    assert 0 <= json.loads((folder / "run" / "metrics.json").read_text())["test/miou_1"] <= 1

    # the checkpoint knows its encoder, at another image size too
    sam = load_sam(folder / "run" / "checkpoints" / "best.ckpt")
    assert sam.config.model == "timm/test_vit" and sam.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 256, 4, 4)
    larger = load_sam(folder / "run" / "checkpoints" / "best.ckpt", image_size=128)
    assert larger.encode(torch.zeros(1, 3, 128, 128)).shape == (1, 256, 8, 8)
    with pytest.raises(ValueError, match="no place for the encoder timm/test_vit"):
        save_official(sam, folder / "official.pth")


@pytest.mark.slow
def test_an_annotator_of_ones_own(folder: Path) -> None:
    answer = samtrain(
        folder, "+experiment=stage1", *SMALL, *DATA, "~public", "+public=${data}", "run_dir=run", "scale.pretrain.steps=1",
        *(f"~rounds.{n}" for n in range(2, 7)), "rounds.1.steps=1", "rounds.1.images=2", "engine.probe_images=1",
        "annotator._target_=mine.FirstObject", "annotator.min_iou=0.01",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.count("FirstObject annotates pool_") >= 2


def test_what_is_wrong_with_ones_own_is_said(folder: Path) -> None:
    for given, message in {
        "prompts._target_=mine.TwoClicks": "prompts.num_points is not a setting of mine.TwoClicks; prompts has more. "
        "To leave samtrain's settings out, give ~prompts",
        "prompts._target_=mine.NoSuch": "prompts._target_ is 'mine.NoSuch', which cannot be imported",
        "callbacks.extra=[{_target_: mine.MyLogger, save_dir: x}]": "callbacks.extra.0._target_ is mine.MyLogger, which makes "
        "a MyLogger: give a subclass of",
    }.items():
        answer = samtrain(folder, "+experiment=pretrain", *SMALL, *DATA, "run_dir=run", given)
        assert answer.returncode == 1 and message in answer.stdout + answer.stderr, answer.stdout + answer.stderr


def test_names_that_are_no_vit_of_timm_are_refused() -> None:
    with pytest.raises(ValueError, match=r"timm has no model 'vit_smal' \(model.name\): choose one of .*vit_"):
        sam_config("timm/vit_smal")
    with pytest.raises(ValueError, match=r"resnet18 is a ResNet of timm \(model.name\): choose a plain Vision Transformer"):
        sam_config("timm/resnet18")


def test_an_encoder_of_timm_is_a_box_like_ours() -> None:
    config = sam_config("timm/vit_small_patch14_dinov2", image_size=64)
    assert (config.encoder_dim, config.encoder_depth, config.patch_size) == (384, 12, 16)
    with torch.device("meta"):
        sam = Sam(config)
    assert len(sam.image_encoder.blocks) == 12
