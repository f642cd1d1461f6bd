"""Tests stored embeddings: an image is encoded once, predictions stay equal, and no other file is taken for its embedding."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from samtrain.inference.embeddings import EmbeddingStore, encoder_digest, image_digest, load_embedding, save_embedding
from samtrain.inference.predictor import SamPredictor
from samtrain.inference.tiled import TiledPredictor
from samtrain.modeling import build_sam
from samtrain.modeling.sam import Sam


def _image(seed: int = 0, size: tuple[int, int] = (97, 61)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def _sam(seed: int = 3) -> Sam:
    torch.manual_seed(seed)
    sam = build_sam("vit_tiny")
    for parameter in sam.parameters():  # away from the small values of the start, so that prompts matter
        parameter.data += torch.randn_like(parameter) * 0.02
    return sam


@pytest.fixture
def predictor() -> SamPredictor:
    return SamPredictor(_sam())


@pytest.fixture
def encoded(predictor: SamPredictor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that grows by one entry with each encoded image."""
    calls: list[int] = []
    encode = predictor.model.encode
    monkeypatch.setattr(predictor.model, "encode", lambda images: calls.append(1) or encode(images))
    return calls


CLICK = {"point_coords": np.array([[20, 30]]), "point_labels": np.array([1])}


def _check_alike(fresh: SamPredictor, kept: SamPredictor) -> None:
    """Compares predictions for clicks all over the image: masks of IoU 0.99, logits within a thousandth of the largest."""
    height, width = fresh.original_size
    points = np.random.default_rng(0).random((8, 1, 2)) * [width, height]
    ours, theirs = (each.predict_many(points, np.ones((8, 1))) for each in (kept, fresh))
    intersections, unions = (ours[0] & theirs[0]).sum(axis=(2, 3)), (ours[0] | theirs[0]).sum(axis=(2, 3))
    assert (intersections >= 0.99 * unions).all()
    np.testing.assert_allclose(ours[1], theirs[1], atol=2e-3)
    np.testing.assert_allclose(ours[2], theirs[2], atol=1e-3 * np.abs(theirs[2]).max())


def test_an_image_is_encoded_once_and_predictions_stay_equal(tmp_path, predictor, encoded):
    store, answers = EmbeddingStore(tmp_path / "store"), []
    for was_there in (False, True, True):
        assert store.set_image(predictor, _image()) is was_there
        assert (predictor.original_size, predictor.input_size) == ((97, 61), (96, 60))
        answers.append(predictor.predict(**CLICK))
    assert len(encoded) == 1
    assert all(np.array_equal(a, b) for later in answers[1:] for a, b in zip(answers[0], later, strict=True))
    assert store.set_image(predictor, _image()[..., ::-1].copy(), "BGR")  # the same image
    assert not store.set_image(predictor, _image(1))
    assert not store.set_image(predictor, _image().swapaxes(0, 1))
    assert len(encoded) == 3


def test_float16_halves_the_file_and_hardly_changes_predictions(tmp_path, predictor):
    fresh = SamPredictor(predictor.model)
    fresh.set_image(_image())
    EmbeddingStore(tmp_path).set_image(predictor, _image())
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.stat().st_size < 2 * fresh.features.numel() + 1000
    assert not torch.equal(predictor.features, fresh.features)
    _check_alike(fresh, predictor)


def test_float16_changes_no_prediction_on_photographs(tmp_path, predictor, shared_data):
    fresh, store = SamPredictor(predictor.model), EmbeddingStore(tmp_path)
    for path in sorted((shared_data / "coco-cc" / "images").glob("*.jpg"))[:3]:
        image = np.asarray(Image.open(path).convert("RGB"))
        fresh.set_image(image)
        store.set_image(predictor, image)
        _check_alike(fresh, predictor)


def test_an_embedding_needs_no_image(tmp_path, predictor, encoded):
    """Files may have any name, and the image may have been resized elsewhere."""
    predictor.set_torch_image(torch.full((1, 3, 96, 40), 100.0), (200, 80))
    expected = predictor.predict(**CLICK, return_logits=True)
    path = save_embedding(predictor, tmp_path / "new" / "mine.safetensors")
    other = SamPredictor(predictor.model)
    load_embedding(other, path)
    assert (other.original_size, other.input_size) == ((200, 80), (96, 40)) and len(encoded) == 1
    for ours, theirs in zip(other.predict(**CLICK, return_logits=True), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(expected[2]).max())


def test_numbers_beyond_float16_are_stored_in_float32(tmp_path, predictor):
    for largest, dtype in ((65504, torch.float16), (65503, torch.float16), (70000, torch.float32)):
        predictor.set_image(_image())
        predictor.features[0, 0, 0, 0] = -largest
        path = save_embedding(predictor, tmp_path / "a.safetensors")
        assert load_file(path)["embedding"].dtype == dtype
        load_embedding(predictor, path)
        assert predictor.features[0, 0, 0, 0] == pytest.approx(-largest, rel=1e-3)
        assert predictor.features.dtype == torch.float32


# whose an embedding is


def _stepped(sam: Sam) -> None:
    with torch.no_grad():
        sam.image_encoder.blocks[1].mlp.fc1.weight[5, 7] += 1e-3


def _written_through(sam: Sam) -> None:
    for parameter in sam.image_encoder.blocks[1].parameters():
        parameter.data.mul_(1.001)


@pytest.mark.parametrize(
    "change",
    [
        _stepped,
        _written_through,
        lambda sam: sam.load_state_dict(_sam(4).state_dict()),
        lambda sam: sam.load_state_dict(_sam(4).state_dict(), assign=True),
        lambda sam: sam.pixel_mean.add_(1),
        lambda sam: sam.bfloat16(),
    ],
)
def test_a_changed_encoder_gets_its_own_embeddings(tmp_path, predictor, encoded, change):
    store = EmbeddingStore(tmp_path)
    store.set_image(predictor, _image())
    path = save_embedding(predictor, tmp_path / "mine.safetensors")
    change(predictor.model)
    with pytest.raises(ValueError, match=r"mine.safetensors was made by another image encoder .*: encode the image again"):
        load_embedding(predictor, path)
    assert [store.set_image(predictor, _image()) for _ in range(2)] == [False, True]
    assert len(encoded) == 2


def test_embeddings_stay_valid_while_the_decoder_learns(tmp_path, predictor, encoded):
    store = EmbeddingStore(tmp_path)
    store.set_image(predictor, _image())
    with torch.no_grad():
        for parameter in predictor.model.mask_decoder.parameters():
            parameter.mul_(1.01)
    assert store.set_image(predictor, _image()) and len(encoded) == 1


def test_the_digest_depends_only_on_weights_and_settings():
    assert encoder_digest(_sam()) == encoder_digest(_sam()) != encoder_digest(_sam(4))
    # windows of the grid's size: where they are shows in no weight
    first, second = (build_sam("vit_tiny", window_size=12, global_attn_indexes=places) for places in ((1, 3), (0, 3)))
    second.load_state_dict(first.state_dict())
    assert encoder_digest(first) != encoder_digest(second)


def test_a_model_in_training_mode_is_refused(tmp_path, predictor):
    predictor.set_image(_image())
    predictor.model.train()
    with pytest.raises(ValueError, match=r"training mode.*call sam.eval\(\)"):
        save_embedding(predictor, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


# files that are not what they should be


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _of_other_shape(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        save_file({"embedding": torch.zeros(1, 8, 12, 12, dtype=torch.float16)}, path, file.metadata())


def _with_header(old: bytes, new: bytes):
    def change(path: Path) -> None:
        content = path.read_bytes()
        assert len(old) == len(new) and content.count(old) == 1
        path.write_bytes(content.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_cut, "cannot be read as an image embedding. It may be cut short"),
        (lambda path: path.write_bytes(b""), "cannot be read as an image embedding. It may be cut short"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 9), "cannot be read as an image embedding"),
        (lambda path: save_file({"embedding": torch.zeros(1, 128, 12, 12)}, path), "cannot be read as an image embedding"),
        (_with_header(b'\\"format\\": 2', b'\\"format\\": 3'), "has format 3, but this version .* format 2"),
        (_with_header(b'\\"format\\": 2', b'\\"tamrof\\": 2'), "of another program or version"),
        (_of_other_shape, r"holds \(1, 8, 12, 12\) torch.float16, but an embedding of this model is \(1, 128, 12, 12\)"),
    ],
)
def test_a_damaged_file_is_refused_and_the_store_overwrites_it(
    tmp_path, predictor, encoded, caplog, damage, complaint
):
    """Overwriting is safe in the store, because the file name identifies the embedding."""
    store = EmbeddingStore(tmp_path)
    store.set_image(predictor, _image())
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    damage(path)
    with pytest.raises(ValueError, match=f"{path.name} .*{complaint}"):
        load_embedding(predictor, path)
    assert predictor.is_image_set  # with the image from before
    assert not store.set_image(predictor, _image())
    assert path.read_bytes() == whole and len(encoded) == 2
    assert "The file is overwritten" in caplog.text
    assert store.set_image(predictor, _image())


def test_a_file_of_another_image_is_refused(tmp_path, predictor):
    store = EmbeddingStore(tmp_path)
    for seed in (0, 1):
        store.set_image(predictor, _image(seed))
    paths = [store.path(predictor.model, image_digest(_image(seed))) for seed in (0, 1)]
    os.replace(paths[1], paths[0])
    with pytest.raises(ValueError, match=f"{paths[0].name} is of another image"):
        load_embedding(predictor, paths[0], digest=image_digest(_image()))
    assert not store.set_image(predictor, _image())


def test_a_missing_file_is_named(tmp_path, predictor):
    with pytest.raises(ValueError, match=r"there is no file .*gone: save_embedding"):
        load_embedding(predictor, tmp_path / "gone")


# writing


def test_a_full_disk_leaves_no_partial_file(tmp_path, predictor, encoded, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = EmbeddingStore(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device \(free some disk space.* stays\): '.*\.safetensors'"):
            store.set_image(predictor, _image())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [store.set_image(predictor, _image()) for _ in range(2)] == [False, True]


def test_two_processes_can_embed_one_image_at_once(tmp_path, predictor):
    def embed(_: int) -> torch.Tensor:
        mine = SamPredictor(predictor.model)
        EmbeddingStore(tmp_path).set_image(mine, _image())
        return mine.features

    with ThreadPoolExecutor(8) as threads:
        features = list(threads.map(embed, range(16)))
    assert all(torch.equal(features[0], each) for each in features)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_tiles_are_stored_beside_the_resized_image(tmp_path, predictor):
    """Both have the same weights and image; each predictor finds its own file, and predictions do not need the image."""
    store, tiled = EmbeddingStore(tmp_path), TiledPredictor(predictor.model)
    assert [store.set_image(each, _image()) for each in (predictor, tiled, predictor, tiled)] == [False, False, True, True]
    again = TiledPredictor(predictor.model)
    assert store.set_image(again, _image())
    click = {"point_coords": [[60, 50]], "point_labels": [1]}
    for ours, theirs in zip(tiled.predict(**click), again.predict(**click), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # and they are close to those of tiles that were encoded for it
    fresh = TiledPredictor(predictor.model)
    fresh.set_image(_image())
    np.testing.assert_allclose(fresh.predict(**click)[1], again.predict(**click)[1], atol=1e-2)
    kept = save_embedding(tiled, tmp_path / "tiles.safetensors")
    with pytest.raises(ValueError, match="tiles with an overlap of 0.5, but this predictor works on the resized image"):
        load_embedding(predictor, kept)
    with pytest.raises(ValueError, match="overlap of 0.5, but this predictor works on tiles with an overlap of 0.25"):
        load_embedding(TiledPredictor(predictor.model, overlap=0.25), kept)
