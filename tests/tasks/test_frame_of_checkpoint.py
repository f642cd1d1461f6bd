"""Tests that every command shows images as the checkpoint was trained, and says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from pretend_predictor import write_pool

from samtrain import tasks
from samtrain.data_engine.stages import FitRequest
from samtrain.inference.embeddings import EmbeddingStore
from samtrain.inference.predictor import SamPredictor
from samtrain.inference.tiled import TiledPredictor
from samtrain.modeling.build import build_sam, load_sam
from samtrain.modeling.checkpoints import save_safetensors
from samtrain.ops.rle import decode_rle
from samtrain.run import training

CONF = Path(__file__).resolve().parents[2] / "conf"
TILES = "Images are cut into overlapping tiles of 48 x 48 of their own pixels, as in the training of the model (frame native)."


def compose_config(*overrides: str) -> dict:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return tasks.resolve(compose("config", overrides=["trainer.accelerator=cpu", "run_dir=run", *overrides]))


def run(folder: Path, *overrides: str) -> dict | None:
    (folder / "run").mkdir(exist_ok=True)
    return tasks.run(compose_config(*overrides), folder / "run")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_safetensors(build_sam("vit_tiny", image_size=48, frame="native"), tmp_path / "native.safetensors")


@pytest.fixture
def image(tmp_path: Path) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "p.png")
    return pixels


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="samtrain")


def test_predict_gives_what_the_predictor_gives(
    tmp_path: Path, checkpoint: Path, image: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = [f"predict.image={tmp_path}/images/p.png", "predict.points=[[90,60,1]]"]
    run(tmp_path, "task=predict", f"checkpoint={checkpoint}", *prompt)
    assert caplog.text.count(TILES) == 1
    predictor = SamPredictor(load_sam(checkpoint))
    predictor.set_image(image)
    masks, ious, _ = predictor.predict([[90, 60]], [1])
    found = json.loads((tmp_path / "run" / "masks.json").read_text())
    assert [each["predicted_iou"] for each in found] == pytest.approx(sorted(ious.tolist(), reverse=True), abs=1e-5)
    assert (decode_rle(found[0]["segmentation"], (90, 120)) != masks[ious.argmax()]).mean() < 0.001


def test_embed_stores_the_tiles(tmp_path: Path, checkpoint: Path, image: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, "task=embed", f"checkpoint={checkpoint}", f"embed.images={tmp_path}/images", f"embed.output={tmp_path}/kept")
    assert caplog.text.count(TILES) == 1
    assert EmbeddingStore(tmp_path / "kept").set_image(SamPredictor(load_sam(checkpoint)), image)


def test_generate_cuts_tiles(tmp_path: Path, checkpoint: Path, image: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    given = ["generator.points_per_side=4"]
    given += ["generator.pred_iou_thresh=-9", "generator.stability_score_thresh=0"]
    output = [f"generate.input={tmp_path}/images", f"generate.output={tmp_path}/out"]
    run(tmp_path, "+experiment=stage3", f"checkpoint={checkpoint}", *given, *output)
    assert TILES in caplog.text and "crop_n_layers is 2 and is not used" in caplog.text
    with pytest.raises(ValueError, match="data.frame is native, but the generator shows images as in the training"):
        run(tmp_path, "+experiment=stage3", f"checkpoint={checkpoint}", *output, "data.frame=native")


@pytest.mark.parametrize(("override", "tiled"), [(None, True), ("zero_shot.native=false", False)])
def test_zero_shot_follows_or_is_told_otherwise(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture, override: str | None, tiled: bool
) -> None:
    write_pool(tmp_path / "set", 1, num=2)
    more = [override] if override else []
    run(tmp_path, "+experiment=zero_shot_points", f"checkpoint={checkpoint}", f"+zero_shot.sets.one={tmp_path}/set", *more)
    assert (TILES in caplog.text) is tiled
    assert ("(frame resize), although the model was trained with frame native." in caplog.text) is not tiled


def test_evaluate_measures_by_tiles(tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Although the set of painted scenes is one whose models are trained on resized images."""
    sizes = ["data.splits.public=1", "data.splits.pool=1", "data.splits.val=1", "data.splits.test=2", "data.splits.crowded=1"]
    run(tmp_path, "task=evaluate", f"checkpoint={checkpoint}", f"data_dir={tmp_path}/shards", *sizes)
    assert caplog.text.count(TILES) == 1
    assert "on 2 test images of data.kind=synthetic." in caplog.text


@pytest.mark.parametrize("native", [True, False])
def test_a_training_writes_its_frame_into_the_checkpoint(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    """Whatever the checkpoint that it started from says."""
    seen: dict = {}
    real = training._lit_sam

    class Stop(Exception):
        pass

    def stop(config, request, sam, crops):
        real(config, request, sam, crops).on_save_checkpoint(seen)
        raise Stop

    monkeypatch.setattr(training, "_lit_sam", stop)
    request = FitRequest(directory=tmp_path, model=None, init=checkpoint, train=[], steps=1, native=native)
    with pytest.raises(Stop):
        training.train(compose_config("model.name=null", "model.image_size=null", f"checkpoint={checkpoint}"), request, [])
    assert seen["sam_config"]["frame"] == ("native" if native else "resize")
    assert type(SamPredictor(load_sam(checkpoint))) is TiledPredictor
