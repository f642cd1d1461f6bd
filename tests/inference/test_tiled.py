"""Tests prediction in tiles: the right tile predicts, in the right place, and small images need no tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samtrain.inference.predictor import SamPredictor
from samtrain.inference.tiled import OUTSIDE_LOGIT, TiledPredictor, _tile_starts
from samtrain.interact import interact
from samtrain.modeling import build_sam
from samtrain.prompts import CentreSampler
from samtrain.types import Prompts

S = 64


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(3)
    sam = build_sam("vit_tiny", image_size=S)
    for parameter in sam.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02
    return sam


@pytest.fixture
def tiled(sam) -> TiledPredictor:
    return TiledPredictor(sam)


def _image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 96, 97, 128, 1000])
def test_tiles_cover_the_axis_with_the_overlap(length, overlap):
    starts = _tile_starts(length, S, overlap)
    assert starts[0] == 0 and starts[-1] == max(length - S, 0)
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= S * (1 - overlap) + 1).all()
    if length > S:
        assert len(starts) == int(np.ceil((length - S) / (S * (1 - overlap)))) + 1


@pytest.mark.parametrize("size", [(64, 64), (64, 40), (23, 64)])
def test_an_image_of_one_tile_is_predicted_without_tiling(sam, tiled, size):
    """With a longest side of S the plain predictor does not resize either, so both see the same input."""
    plain = SamPredictor(sam)
    for predictor in (plain, tiled):
        predictor.set_image(_image(size))
    for prompt in ({"point_coords": [[20, 12]], "point_labels": [1]}, {"box": [3, 4, 30, 20]}):
        arguments = {key: np.array(value) for key, value in prompt.items()}
        ours, theirs = tiled.predict(**arguments, return_logits=True), plain.predict(**arguments, return_logits=True)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_object_is_predicted_in_the_tile_where_it_is_most_central(sam, tiled):
    """The result equals that of the tile as an image of its own, and there is no mask beyond the tile."""
    image = _image((150, 200))
    tiled.set_image(image)
    x, y = 118, 75
    tile = tiled.tiles[tiled.tile_of(torch.tensor([[float(x), y]]))[0]].tolist()
    assert abs(tile[0] + S / 2 - x) <= S / 4 + 1 and abs(tile[1] + S / 2 - y) <= S / 4 + 1
    logits, ious, low_res = tiled.predict(np.array([[x, y]]), np.array([1]), return_logits=True)

    plain = SamPredictor(sam)
    plain.set_image(image[tile[1] : tile[1] + S, tile[0] : tile[0] + S])
    expected = plain.predict(np.array([[x - tile[0], y - tile[1]]]), np.array([1]), return_logits=True)
    np.testing.assert_allclose(ious, expected[1], atol=1e-5)
    np.testing.assert_allclose(low_res, expected[2], atol=1e-5)
    inside = np.zeros(image.shape[:2], dtype=bool)
    inside[tile[1] : tile[1] + S, tile[0] : tile[0] + S] = True
    np.testing.assert_allclose(logits[:, inside], expected[0].reshape(3, -1), atol=1e-5)
    assert (logits[:, ~inside] == OUTSIDE_LOGIT).all()


def test_many_objects_are_predicted_each_in_its_tile(tiled, monkeypatch):
    monkeypatch.setattr("samtrain.inference.predictor.OBJECTS_AT_A_TIME", 2)
    tiled.set_image(_image((150, 200)))
    points, labels = np.array([[[118.0, 75]], [[5, 5]], [[190, 140]]]), np.array([[1], [0], [1]])
    together = tiled.predict_many(points, labels, return_logits=True)
    for row in range(3):
        alone = tiled.predict(points[row], labels[row], return_logits=True)
        for many, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(many[row], one, atol=2e-5)
    assert tiled.predict_many(boxes=np.zeros((0, 4)))[0].shape == (0, 3, 150, 200)


def test_only_needed_tiles_are_encoded_and_only_once(tiled, monkeypatch):
    tiled.set_image(_image((200, 200)))
    encoded = []
    encode = tiled.model.encode
    monkeypatch.setattr(tiled.model, "encode", lambda images: encoded.append(len(images)) or encode(images))
    tiled.predict(np.array([[5, 5]]), np.array([1]))
    tiled.predict(np.array([[7, 5]]), np.array([1]))
    assert encoded == [1]
    tiled.predict_torch(torch.tensor([[[5.0, 5]], [[190, 190]], [[5, 190]]]), torch.ones(3, 1))
    assert encoded == [1, 2]
    tiled.set_image(_image((200, 200)))
    assert tiled.features == {}


def test_the_tile_stays_the_same_for_all_clicks(tiled):
    """The first click decides, wherever later ones are; a click beyond the tile is ignored."""
    tiled.set_image(_image((200, 200)))
    decoder = tiled.decoder()
    first = Prompts(torch.tensor([[[40.0, 40], [0, 0]]]), torch.tensor([[1, -1]]))
    low_res = decoder.decode(first, True).low_res_logits[:, :1]
    tile = decoder.tiles_N.clone()
    again = first.with_mask(low_res)
    near = again.with_point(torch.tensor([[45.0, 45]]), torch.tensor([0]))
    far = again.with_point(torch.tensor([[190.0, 190]]), torch.tensor([0]))
    padded = again.with_point(torch.tensor([[0.0, 0]]), torch.tensor([-1]))
    answers = []
    for prompts in (near, far, padded):
        answers.append(decoder.decode(prompts, False).low_res_logits)
        assert torch.equal(decoder.tiles_N, tile)
    assert torch.equal(answers[1], answers[2]) and not torch.equal(answers[0], answers[1])


def test_boxes_are_clipped_to_their_tile(tiled):
    tiled.set_image(_image((200, 200)))
    boxes = torch.tensor([[-20.0, 30, 260, 170]])  # larger than a tile, and than the image
    centre = boxes.view(1, 2, 2).mean(dim=1)
    x, y = tiled.tiles[tiled.tile_of(centre)[0]].tolist()
    clipped = torch.tensor([[x, y, x + S - 1.0, y + S - 1.0]])
    assert torch.equal(tiled.predict_torch(None, None, boxes)[2], tiled.predict_torch(None, None, clipped)[2])


@pytest.mark.parametrize("size", [(150, 200), (40, 150)])
@pytest.mark.parametrize("first", ["point", "box"])
def test_interact_clicks_on_a_tiled_image(tiled, size, first):
    tiled.set_image(_image(size))
    masks = torch.zeros(3, *size, dtype=torch.bool)
    masks[0, 2:20, 5:30] = True
    masks[1, 20:38, 100:140] = True
    sampler = CentreSampler(num_points=3, first=first)
    turns = list(
        interact(
            tiled.decoder(points_per_batch=2),
            masks,
            sampler,
            schedule=sampler.schedule(),
            valid_NHW=torch.ones_like(masks),
            generator=torch.Generator(),
        )
    )
    assert all(turn.logits().shape == masks.shape for turn in turns)
    assert [turn.output.low_res_logits.shape[1] for turn in turns] == [3, 1, 1]
    # batches change nothing
    together = tiled.decoder().decode(turns[0].prompts, True).low_res_logits
    torch.testing.assert_close(together, turns[0].output.low_res_logits, rtol=0, atol=2e-5)


def test_calls_without_meaning_for_tiles_are_refused(tiled):
    tiled.set_image(_image((200, 200)))
    with pytest.raises(RuntimeError, match="use set_image"):
        tiled.set_torch_image(torch.zeros(1, 3, S, S), (S, S))
    with pytest.raises(ValueError, match=r"the tiles of an image of \(64, 64\) have embeddings \(1, 128, 8, 8\)"):
        tiled.set_image_embedding(torch.zeros(2, 128, 8, 8), (S, S))
    with pytest.raises(ValueError, match="which tile"):
        tiled.predict(mask_input=np.zeros((1, tiled.model.config.mask_size, tiled.model.config.mask_size)))
    with pytest.raises(ValueError, match="overlap is 1.0"):
        TiledPredictor(tiled.model, overlap=1.0)
    tiled.reset_image()
    with pytest.raises(RuntimeError, match="set_image"):
        tiled.get_image_embedding()
    with pytest.raises(RuntimeError, match="set_image"):
        tiled.predict(np.array([[5, 5]]), np.array([1]))
