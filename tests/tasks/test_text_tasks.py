"""Words on the command line: a CLIP is trained, a model learns to take texts, and both find objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

pytest.importorskip("open_clip")

from samtrain import load_clip, tasks  # noqa: E402
from samtrain.modeling import build_sam, load_sam  # noqa: E402
from samtrain.modeling.checkpoints import save_official, save_safetensors  # noqa: E402
from samtrain.modeling.growth import with_text  # noqa: E402
from tests.tiny_clip import TINY, hugging_face_clip, tiny_clip_folder  # noqa: E402

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL_CLIP = [f"clip_training.model={json.dumps(TINY)}".replace('"', ""), "clip_training.steps=2", "clip_training.scenes=6"]
SMALL = [
    "model.name=vit_tiny", "trainer.max_steps=2", "trainer.val_every_steps=2", "loader.batch_size=2", "loader.val_batch_size=2",
    "trainer.images_per_step=2", "data.splits={public: 4, pool: 0, val: 2, test: 3}", "generator.points_per_side=4",
    "generator.pred_iou_thresh=0.0", "generator.stability_score_thresh=0.0",
]  # fmt: skip


def run(folder: Path, *overrides: str) -> dict:
    GlobalHydra.instance().clear()
    given = [*overrides, f"run_dir={folder}", f"data_dir={folder.parent / 'data'}", "trainer.accelerator=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = tasks.resolve(compose("config", overrides=given))
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))  # as the command line does; the report reads it
    return tasks.run(config, folder)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in Meta's layout."""
    torch.manual_seed(0)
    return save_official(build_sam("vit_tiny"), tmp_path_factory.mktemp("sam") / "sam.pth")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, official: Path) -> tuple[Path, dict]:
    """A run of +experiment=text that trains its CLIP first."""
    folder = tmp_path_factory.mktemp("text") / "run"
    return folder, run(folder, "+experiment=text", f"checkpoint={official}", *SMALL, *SMALL_CLIP)


def test_a_clip_is_trained_once(tmp_path: Path) -> None:
    settings = ["+experiment=clip", *SMALL_CLIP, "data.splits.test=2"]
    metrics = run(tmp_path / "run", *settings)
    assert 0 <= metrics["test/right_object"] <= 1
    assert load_clip(tmp_path / "run" / "clip").dim == TINY["embed_dim"]
    weights = (tmp_path / "run" / "clip" / "open_clip_model.safetensors").stat().st_mtime_ns
    assert run(tmp_path / "run", *settings)["test/right_object"] == metrics["test/right_object"]
    assert (tmp_path / "run" / "clip" / "open_clip_model.safetensors").stat().st_mtime_ns == weights


def test_a_model_learns_to_take_texts(trained: tuple[Path, dict], official: Path) -> None:
    folder, metrics = trained
    names = ("text_miou", "text_oracle_miou", "text_other_miou", "text_foreign_miou", "text_ranked_miou")
    assert {f"test/{name}" for name in names} <= set(metrics) and {"val/text_miou", "test/miou_1"} <= set(metrics)
    assert all(0 <= metrics[f"test/{name}"] <= 1 for name in names)
    sam = load_sam(folder / "checkpoints" / "best.ckpt")
    assert sam.config.text_dim == TINY["embed_dim"]
    # the encoder is frozen, the map has learned, and CLIP is no part of the checkpoint
    before = load_sam(official)
    same = [torch.equal(a, b) for a, b in zip(before.image_encoder.parameters(), sam.image_encoder.parameters(), strict=True)]
    assert all(same)
    state = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert not any("crops" in key or "clip" in key for key in state)
    assert (folder / "clip_training" / "clip" / "open_clip_config.json").is_file()
    page = (folder / "report.html").read_text()
    assert "another object" in page


def test_sentences_are_measured_on_any_set(tmp_path: Path, trained: tuple[Path, dict], official: Path) -> None:
    folder, _ = trained
    given = ["+experiment=zero_shot_text", *[each for each in SMALL if each.startswith(("data", "generator"))]]
    clip = f"clip={folder / 'clip_training' / 'clip'}"
    own = run(tmp_path / "own", *given, f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}", clip)
    ranked = run(tmp_path / "ranked", *given, f"checkpoint={official}", clip)
    assert {"test/text_miou", "test/text_recall", "test/text_ranked_miou"} <= set(own)
    assert "test/text_ranked_miou" in ranked and "test/text_miou" not in ranked
    with pytest.raises(ValueError, match="clip is null"):
        run(tmp_path / "none", *given, f"checkpoint={official}")


def test_predict_finds_what_a_text_says(tmp_path: Path, trained: tuple[Path, dict], official: Path) -> None:
    folder, _ = trained
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"p{number}.png")
    clip = f"clip={folder / 'clip_training' / 'clip'}"
    quick = [each for each in SMALL if each.startswith("generator")]
    trained_model = f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}"
    run(tmp_path / "one", "task=predict", trained_model, clip, f"predict.image={images}/p0.png", "predict.text=a red box",
        "text.score_thresh=-1", *quick)  # fmt: skip
    (found,) = json.loads((tmp_path / "one" / "masks.json").read_text())
    assert found["text"] == "a red box" and (tmp_path / "one" / "mask_0.png").is_file()
    # a folder, by the ranked masks of a model without text prompts; a high threshold finds nothing
    run(tmp_path / "all", "task=predict", f"checkpoint={official}", clip, f"predict.image={images}", "predict.text=a red box",
        "text.score_thresh=1", *quick)  # fmt: skip
    for name in ("p0", "p1"):
        assert json.loads((tmp_path / "all" / name / "masks.json").read_text()) == []
        assert (tmp_path / "all" / name / "masks.png").is_file()
    run(tmp_path / "click", "task=predict", trained_model, clip, f"predict.image={images}/p0.png", "predict.text=a red box",
        "predict.points=[[20,20,1]]")  # fmt: skip
    assert len(json.loads((tmp_path / "click" / "masks.json").read_text())) == 3


@pytest.mark.parity
def test_official_weights_and_a_clip_of_transformers_find_and_are_measured(tmp_path: Path, official: Path) -> None:
    hugging_face_clip(tmp_path / "clip")
    given = [f"checkpoint={official}", f"clip={tmp_path / 'clip'}", *[each for each in SMALL if each.startswith("generator")]]
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    asked = [f"predict.image={tmp_path}/p.png", "predict.text=a box", "text.score_thresh=-1"]
    run(tmp_path / "one", "task=predict", *given, *asked)
    found = json.loads((tmp_path / "one" / "masks.json").read_text())
    assert found and all(each["text"] == "a box" and each["area"] > 0 for each in found)
    data = [each for each in SMALL if each.startswith("data")]
    metrics = run(tmp_path / "measured", "+experiment=zero_shot_text", *given, *data)
    assert 0 <= metrics["test/text_ranked_miou"] <= 1


def test_stored_embeddings_train_without_clip(tmp_path: Path, official: Path) -> None:
    clip, data = tiny_clip_folder(tmp_path / "clip"), [each for each in SMALL if each.startswith("data")]
    for _ in range(2):  # the second call finds everything
        run(tmp_path / "embed", "task=embed", "embed.text=true", "embed.text_draws=2", f"clip={clip}", *data)
    folder = tmp_path / "embed" / "text_embeddings"
    assert len(list(folder.glob("*.safetensors"))) == 6
    stored = f"text.embeddings={folder}"
    metrics = run(tmp_path / "fit", "+experiment=text", f"checkpoint={official}", stored, *SMALL)
    assert "val/text_miou" in metrics and "test/text_miou" not in metrics  # sentences need the CLIP
    other = tiny_clip_folder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="of another CLIP"):
        run(tmp_path / "wrong", "+experiment=text", f"checkpoint={official}", stored, f"clip={other}", *SMALL)


def test_text_without_captions_needs_a_clip(tmp_path: Path, official: Path) -> None:
    with pytest.raises(ValueError, match="set clip=FILE"):
        run(tmp_path / "run", "task=predict", f"checkpoint={official}", "predict.image=.", "predict.text=a")
    path = save_safetensors(with_text(load_sam(official), 8), tmp_path / "other.safetensors")
    clip = tiny_clip_folder(tmp_path / "clip")
    with pytest.raises(ValueError, match="give the CLIP that it was trained with"):
        run(tmp_path / "fit", "+experiment=text", f"checkpoint={path}", f"clip={clip}", *SMALL)
