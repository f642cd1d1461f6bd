"""The tasks around the data, as a user runs them: prepare, preview, predict, embed, evaluate."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from samtrain import tasks
from samtrain.inference.embeddings import EmbeddingStore
from samtrain.inference.predictor import SamPredictor
from samtrain.modeling.build import build_sam, load_sam
from samtrain.modeling.checkpoints import save_safetensors
from samtrain.ops.rle import decode_rle, encode_mask

CONF = Path(__file__).resolve().parents[2] / "conf"
SIZE = (48, 64)


def run(folder: Path, *overrides: str) -> dict[str, Any] | None:
    """A task on small images in `folder`/set; what it writes lies in `folder`/run."""
    GlobalHydra.instance().clear()
    given = ["scale.image_size=64", "run_dir=run", f"data_dir={folder}/shards", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = tasks.resolve(compose("config", overrides=given))
    (folder / "run").mkdir(exist_ok=True)
    return tasks.run(config, folder / "run")


@pytest.fixture
def own_images(tmp_path: Path) -> str:
    """Eight images with two objects each and SA-1B's JSON beside them, and one with a JSON that is none."""
    (tmp_path / "set").mkdir()
    for number in range(9):
        rng = np.random.default_rng(number)
        image = rng.integers(60, 90, (*SIZE, 3), dtype=np.uint8)
        objects = []
        for i in range(2):
            mask = np.zeros(SIZE, bool)
            mask[6 + i : 40, 4 + 30 * i : 28 + 30 * i] = True
            image[mask] = rng.integers(100, 255, 3)
            objects.append({"id": i, "segmentation": encode_mask(mask)})
        Image.fromarray(image).save(tmp_path / "set" / f"p{number}.png")
        content = {"image": {"width": SIZE[1], "height": SIZE[0]}, "annotations": objects}
        (tmp_path / "set" / f"p{number}.json").write_text(json.dumps(content) if number else "{")
    return f"data.root={tmp_path}/set"


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_safetensors(build_sam("vit_tiny", image_size=64), tmp_path / "sam.safetensors")
    return f"checkpoint={tmp_path}/sam.safetensors"


def test_prepare_says_what_it_refused_and_does_it_once(
    tmp_path: Path, own_images: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="samtrain")
    run(tmp_path, "task=prepare", "data=folder", own_images)
    (folder,) = (tmp_path / "shards").glob("set_*")
    report = json.loads((folder / "prepare.json").read_text())
    assert {split: content["images"] for split, content in report["splits"].items()} == {"pool": 6, "val": 1, "test": 1}
    assert "Refused p0.png: the JSON cannot be parsed" in caplog.text and "preflight check found nothing wrong" in caplog.text
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    run(tmp_path, "task=prepare", "data=folder", own_images)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}


def test_preview_is_a_row_a_image(tmp_path: Path, own_images: str) -> None:
    run(tmp_path, "task=preview", "data=folder", own_images, "preview.images=3")
    sheet = np.asarray(Image.open(tmp_path / "run" / "preview.png"))
    run(tmp_path, "task=preview", "data=folder", own_images, "preview.images=1")
    row = np.asarray(Image.open(tmp_path / "run" / "preview.png"))
    assert sheet.shape[0] > 2.9 * row.shape[0] and sheet.shape[1] == row.shape[1]
    tile = row.shape[1] // 3  # the image, its two objects
    assert not np.array_equal(row[:, :tile], row[:, tile : 2 * tile])


def test_evaluate_measures_the_images_held_back(tmp_path: Path, own_images: str, checkpoint: str) -> None:
    metrics = run(tmp_path, "task=evaluate", "data=folder", own_images, checkpoint)
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"test/miou_1", "test/oracle_miou_1", "test/miou_3", "test/miou_5", "test/box_miou"} <= set(metrics)
    with pytest.raises(ValueError, match="checkpoint is null: task=evaluate needs one, set checkpoint=FILE"):
        run(tmp_path, "task=evaluate", "data=folder", own_images)


@pytest.mark.parametrize(
    ("prompt", "count"), [("points=[[20,30,1]]", 3), ("box=[4,6,20,40]", 3), ("points=[[9,9,1],[1,1,0]]", 1)]
)
def test_predict_writes_masks_of_the_image_as_it_is_shown(tmp_path: Path, checkpoint: str, prompt: str, count: int) -> None:
    """A 16-bit TIFF that EXIF turns: none of it may be taken for a white image, or one that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.linspace(1000, 3000, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)
    Image.fromarray(values).save(tmp_path / "p.tif", exif=exif)
    run(tmp_path, "task=predict", checkpoint, f"predict.image={tmp_path}/p.tif", f"predict.{prompt}")
    found = json.loads((tmp_path / "run" / "masks.json").read_text())
    ious = [each["predicted_iou"] for each in found]
    assert len(found) == count and ious == sorted(ious, reverse=True)
    for number, each in enumerate(found):
        written = np.asarray(Image.open(tmp_path / "run" / f"mask_{number}.png"))
        assert np.array_equal(written > 0, decode_rle(each["segmentation"], (SIZE[1], SIZE[0])))
        assert each["area"] == (written > 0).sum()
    assert len(np.unique(np.asarray(Image.open(tmp_path / "run" / "masks.png")))) > 50


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["predict.points=[[1,1,1]]"], "predict.image is null"),
        (["predict.image=gone.png", "predict.points=[[1,1,1]]"], "predict.image is 'gone.png', which is not a file"),
        (["predict.image={}/sam.safetensors", "predict.points=[[1,1,1]]"], "sam.safetensors: its image cannot be read"),
        (["predict.image={}/sam.safetensors"], "There are no prompts"),
        (["predict.image={}/sam.safetensors", "predict.points=[[1,1,2]]"], r"give a list of points, each \[x, y, 1\] on"),
    ],
)
def test_predict_says_what_is_missing(tmp_path: Path, checkpoint: str, overrides: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        run(tmp_path, "task=predict", checkpoint, *[each.format(tmp_path) for each in overrides])


def test_embedded_images_are_found_by_whoever_opens_them(
    tmp_path: Path, own_images: str, checkpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A second call goes on where the first was; its broken image is counted."""
    caplog.set_level(logging.INFO, logger="samtrain")
    images = tmp_path / "set"
    command = ["task=embed", checkpoint, f"embed.output={tmp_path}/kept"]
    run(tmp_path, *command, f"embed.images='{images}/p[0-3].png'")
    assert "4 images new, 0 existed already, 0 left out" in caplog.text
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("kept/*/*.safetensors")}
    (images / "below").mkdir()
    (images / "below" / "broken.png").write_bytes((images / "p0.png").read_bytes()[:-900])
    with pytest.raises(ValueError, match=r"broken.png: its image cannot be read .* set data.on_error=skip"):
        run(tmp_path, *command, f"embed.images={images}")
    run(tmp_path, *command, f"embed.images={images}", "data.on_error=skip")
    assert len(written) == 4 and all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert "5 images new, 4 existed already, 1 left out" in caplog.text

    predictor = SamPredictor(load_sam(tmp_path / "sam.safetensors"))
    store = EmbeddingStore(tmp_path / "kept")
    for path in images.glob("*.png"):
        assert store.set_image(predictor, np.asarray(Image.open(path)))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["checkpoint=null"], "checkpoint is null: task=embed needs checkpoint=FILE embed.images=FOLDER"),
        (["embed.images=null"], "embed.images is null"),
        (["embed.images=gone/*.png"], r"embed.images is 'gone/\*.png', and no image was found there: give a folder of .bmp, "),
        (["data.on_error=ignore"], "data.on_error is 'ignore': give one of raise, skip"),
    ],
)
def test_embed_says_what_is_missing(tmp_path: Path, checkpoint: str, overrides: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        run(tmp_path, "task=embed", checkpoint, "embed.images=.", *overrides)
