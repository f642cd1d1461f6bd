"""A folder of transformers' SamModel holds the model that was written, and gives its masks there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samtrain.data.scenes import generate_scene
from samtrain.export.huggingface import ask_transformers, save_huggingface
from samtrain.export.probe import ask_samtrain, compare, make_probe
from samtrain.inference.predictor import SamPredictor
from samtrain.modeling import Sam, load_sam
from samtrain.modeling.build import checkpoint_config
from tests.export.conftest import random_sam

transformers = pytest.importorskip("transformers", reason="needs the reference: pip install transformers")


@pytest.fixture(scope="module")
def folder(sam: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_huggingface(sam, tmp_path_factory.mktemp("hub") / "model")


def _assert_equal(found: Sam, given: Sam) -> None:
    state = found.state_dict()
    assert state.keys() == given.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in given.state_dict().items())


def test_a_folder_holds_the_model_that_was_written(sam: Sam, folder: Path) -> None:
    found = load_sam(folder)
    assert found.config == sam.config == checkpoint_config(folder)
    _assert_equal(found, sam)


@pytest.mark.parametrize("fields", [{}, {"decoder_depth": 3}, {"pixel_mean": (10.0, 20.0, 30.0), "pixel_std": (5.0, 6.0, 7.5)}])
def test_transformers_reads_and_writes_it_without_loss(tmp_path: Path, fields: dict) -> None:
    given = random_sam(1, **fields)
    save_huggingface(given, tmp_path / "a")
    model, info = transformers.SamModel.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(info.values())
    model.save_pretrained(tmp_path / "b", max_shard_size="100KB")  # in several files, without samtrain's own config
    transformers.SamProcessor.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "model.safetensors.index.json").is_file()
    found = load_sam(tmp_path / "b")
    assert found.config == given.config
    _assert_equal(found, given)


def test_the_masks_are_those_of_samtrain(sam: Sam, folder: Path) -> None:
    probe = make_probe()
    own, reading = ask_samtrain(sam, probe), ask_transformers(folder, sam.config, probe)
    agreement = compare(own.answers, reading.answers)
    assert max(agreement.logit_error, agreement.iou_error) < 2e-5 and agreement.mask_iou > 0.999
    assert compare(own.answers, reading.end_to_end).mask_iou > 0.98  # its processor resizes by other rules
    mirrored = make_probe(probe.image[:, ::-1].copy())
    assert compare(own.answers, ask_transformers(folder, sam.config, mirrored).answers).mask_iou < 0.98


def test_the_pipeline_gives_the_masks_of_the_same_points(sam: Sam, folder: Path) -> None:
    image = generate_scene(3, (48, 64)).image  # as large as the input, so that nothing is resized
    generator = transformers.pipeline("mask-generation", model=str(folder), device="cpu")
    found = generator(
        Image.fromarray(image), points_per_batch=64, points_per_crop=3, pred_iou_thresh=-1e9, stability_score_thresh=0.0,
        crops_nms_thresh=1.0,
    )  # fmt: skip
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    places = (np.arange(3) + 0.5) / 3
    points = np.stack(np.meshgrid(places * 64, places * 48), axis=-1).reshape(-1, 1, 2)
    masks, ious, _ = predictor.predict_many(points, np.ones((9, 1)))
    expected = {round(float(iou), 3): mask for mask, iou in zip(masks.reshape(-1, 48, 64), ious.flatten(), strict=True)}
    assert len(found["masks"]) > 9
    for mask, score in zip(found["masks"], found["scores"], strict=True):
        nearest = min(expected, key=lambda iou: abs(iou - float(score)))
        assert abs(nearest - float(score)) < 2e-3 and (np.asarray(mask) != expected[nearest]).mean() < 0.002


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"model_type": "sam2"}, r"a model of the kind 'sam2' \(checkpoint\): samtrain reads SamModel"),
        ("config.json", {"mask_decoder_config": {"hidden_act": "gelu"}}, r"sets hidden_act 'gelu' \(checkpoint\)"),
    ],
)
def test_models_of_other_kinds_are_refused(sam: Sam, tmp_path: Path, name: str, change: dict, said: str) -> None:
    save_huggingface(sam, tmp_path)
    path = tmp_path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        load_sam(tmp_path)


def test_a_broken_or_incomplete_folder_is_named(sam: Sam, tmp_path: Path) -> None:
    save_huggingface(sam, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON \(checkpoint\): download it again"):
        load_sam(tmp_path)
    save_huggingface(sam, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names model-00001-of-00002.safetensors, which is not there \(checkpoint\)"):
        load_sam(tmp_path)
