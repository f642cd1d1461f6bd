"""Tests the predictor: calls, numbers and frames equal those of segment_anything, and `interact` can use it."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from samtrain.inference.predictor import ImageDecoder, SamPredictor
from samtrain.inference.transforms import ResizeLongestSide
from samtrain.interact import interact
from samtrain.modeling import SAM_CONFIGS, build_sam
from samtrain.prompts import CentreSampler
from samtrain.types import Prompts

CONFIG = SAM_CONFIGS["vit_tiny"]
SIZES = [(97, 61), (45, 131), (128, 128), (300, 201), (7, 128)]


def _image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor() -> SamPredictor:
    torch.manual_seed(3)
    sam = build_sam("vit_tiny")
    for parameter in sam.parameters():  # away from the small values of the start, so that prompts matter
        parameter.data += torch.randn_like(parameter) * 0.02
    return SamPredictor(sam)


@pytest.fixture(scope="module")
def official(predictor):
    """segment_anything's predictor round the same weights."""
    pytest.importorskip("segment_anything", reason="needs the reference: pip install segment-anything")
    from segment_anything import SamPredictor as OfficialPredictor

    from tests.official import official_like

    return OfficialPredictor(official_like(predictor.model))


@pytest.mark.parity
@pytest.mark.parametrize("size", SIZES)
def test_images_are_resized_and_normalised_to_the_bit(predictor, official, size):
    image = _image(size)
    assert np.array_equal(predictor.transform.apply_image(image), official.transform.apply_image(image))
    resized = torch.as_tensor(official.transform.apply_image(image)).permute(2, 0, 1)[None]
    side = CONFIG.image_size
    padded = torch.nn.functional.pad(resized, (0, side - resized.shape[3], 0, side - resized.shape[2]))
    ours = predictor.model.preprocess(padded, torch.tensor([resized.shape[2:]]))
    assert torch.equal(ours, official.model.preprocess(resized))


@pytest.mark.parity
def test_signatures_equal_those_of_segment_anything(predictor, official):
    """Arguments that can only be given by their names are our additions."""
    for ours, theirs in ((predictor, official), (predictor.transform, official.transform)):
        public = [name for name, _ in inspect.getmembers(theirs, inspect.ismethod) if not name.startswith("_")]
        public = [name for name in public if name != "get_preprocess_shape"]  # a static helper: our `size`
        assert public
        for name in ["__init__", *public]:
            a, b = (inspect.signature(getattr(each, name)).parameters.values() for each in (ours, theirs))
            a = [p for p in a if p.kind is not p.KEYWORD_ONLY]
            assert [(p.name, p.default, p.kind) for p in a] == [(p.name, p.default, p.kind) for p in b], name


@pytest.mark.parametrize("size", SIZES)
def test_tensors_are_resized_almost_like_arrays(predictor, size):
    """Our size comes from the image's sides; segment_anything on PyPI takes the first two axes of the batch instead."""
    image = _image(size)
    resized = predictor.transform.apply_image_torch(torch.tensor(image).permute(2, 0, 1)[None].float())
    expected = torch.tensor(predictor.transform.apply_image(image)).permute(2, 0, 1)[None].float()
    assert resized.shape == expected.shape
    assert (resized - expected).abs().max() <= 2  # PIL rounds after each axis


@pytest.mark.parity
@pytest.mark.parametrize("size", SIZES)
def test_coordinates_are_scaled_to_the_bit(predictor, official, size):
    coords = np.random.default_rng(1).random((5, 2)) * size[::-1]
    boxes = np.array([[1, 2, 30, 6], [0, 0, size[1] - 1, size[0] - 1]])
    ours, theirs = predictor.transform, official.transform
    assert np.array_equal(ours.apply_coords(coords, size), theirs.apply_coords(coords, size))
    assert np.array_equal(ours.apply_boxes(boxes, size), theirs.apply_boxes(boxes, size))
    assert np.array_equal(ours.apply_boxes_torch(torch.tensor(boxes), size).shape, (2, 4))


CALLS = [
    {"point_coords": [[20, 30]], "point_labels": [1]},
    {"point_coords": [[20, 30], [5.5, 2]], "point_labels": [1, 0], "multimask_output": False},
    {"box": [3, 4, 40, 30]},
    {"box": [[3, 4, 40, 30]], "point_coords": [[20, 10]], "point_labels": [0]},
    {"mask_input": True},
    {"mask_input": True, "point_coords": [[20, 30]], "point_labels": [1], "multimask_output": False},
    {"return_logits": True, "box": [3, 4, 40, 30]},
    {},
]


@pytest.mark.parity
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_predictions_equal_those_of_segment_anything(predictor, official, call, image_format):
    image = _image((97, 61))
    mask = np.random.default_rng(2).normal(size=(1, CONFIG.mask_size, CONFIG.mask_size)).astype(np.float32) * 4
    arguments = {key: np.array(v) if isinstance(v, list) else v for key, v in call.items()}
    if "mask_input" in arguments:
        arguments["mask_input"] = mask
    for each in (predictor, official):
        each.set_image(image, image_format)
    ours, theirs = predictor.predict(**arguments), official.predict(**arguments)
    assert [(a.shape, a.dtype) for a in ours] == [(b.shape, b.dtype) for b in theirs]
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)
    np.testing.assert_allclose(ours[2], theirs[2], atol=1e-4 * np.abs(theirs[2]).max())
    if ours[0].dtype == bool:
        assert (ours[0] != theirs[0]).mean() < 1e-3
    for name in ("original_size", "input_size", "is_image_set", "device"):
        assert getattr(predictor, name) == getattr(official, name), name
    assert torch.allclose(predictor.get_image_embedding(), official.get_image_embedding(), atol=1e-4)


@pytest.mark.parity
def test_predict_torch_predicts_many_objects(predictor, official):
    for each in (predictor, official):
        each.set_image(_image((97, 61)))
    points = torch.tensor([[[20.0, 30]], [[50, 60]], [[1, 2]]])
    labels, boxes = torch.ones(3, 1, dtype=torch.int), torch.tensor([[3.0, 4, 40, 50]] * 3)
    mask = torch.randn(1, 1, CONFIG.mask_size, CONFIG.mask_size)
    for arguments in ((points, labels), (None, None, boxes), (points, labels, boxes, mask)):
        ours = predictor.predict_torch(*arguments)
        theirs = official.predict_torch(*arguments)
        assert ours[0].dtype == theirs[0].dtype == torch.bool
        assert torch.allclose(ours[2], theirs[2], atol=1e-4 * float(theirs[2].abs().max()))
        assert torch.allclose(ours[1], theirs[1], atol=1e-5)


def test_reset_forgets_only_the_image(predictor):
    predictor.set_image(_image((97, 61)))
    predictor.reset_image()
    assert not predictor.is_image_set and predictor.features is None
    assert predictor.original_size == (97, 61)
    for ask in (lambda: predictor.predict(box=np.zeros(4)), predictor.get_image_embedding):
        with pytest.raises(RuntimeError, match="call set_image"):
            ask()


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_other_arrays_are_refused(predictor, image):
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8.*convert\('RGB'\)"):
        predictor.set_image(image)


def test_other_formats_and_sizes_are_refused(predictor):
    with pytest.raises(ValueError, match="'RGB' or 'BGR'"):
        predictor.set_image(_image((9, 9)), "RGBA")
    with pytest.raises(ValueError, match="longest side is 96, got"):
        predictor.set_torch_image(torch.zeros(1, 3, 64, 64), (64, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point_coords": [[1, 2]]}, "point_labels is missing"),
        ({"point_labels": [1]}, "point_coords is missing"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, "with K labels"),
        ({"point_coords": [[1, 2]], "point_labels": [7]}, "labels are 1 foreground"),
        ({"box": [1, 2, 3]}, "one box of 4 numbers"),
        ({"mask_input": np.zeros((1, 5, 5))}, r"a mask input is the \(1, "),
    ],
)
def test_other_prompts_are_refused(predictor, arguments, message):
    predictor.set_image(_image((97, 61)))
    with pytest.raises(ValueError, match=message):
        predictor.predict(**{key: np.array(value) for key, value in arguments.items()})


def test_unequal_numbers_of_objects_are_refused(predictor):
    predictor.set_image(_image((97, 61)))
    with pytest.raises(ValueError, match="different numbers of objects"):
        predictor.predict_torch(torch.zeros(2, 1, 2), torch.ones(2, 1), torch.zeros(3, 4))


# many objects in one call


MANY = {
    "clicks": {"point_coords": np.array([[[20.0, 30], [5, 2]], [[50, 60], [9, 9]], [[1, 2], [60, 96]]])},
    "boxes": {"boxes": np.array([[3, 4, 40, 30], [0, 0, 60, 96], [5.5, 6, 7, 80]])},
}
MANY["clicks"]["point_labels"] = np.array([[1, 0], [1, 1], [0, 1]])
MANY["clicks and boxes"] = {**MANY["clicks"], **MANY["boxes"]}
MANY["masks"] = {"mask_input": np.random.default_rng(2).normal(size=(3, 1, CONFIG.mask_size, CONFIG.mask_size))}
MANY["all"] = {**MANY["clicks and boxes"], **MANY["masks"]}


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("return_logits", [True, False])
@pytest.mark.parametrize("at_a_time", [1, 2, 64])
def test_many_objects_are_predicted_like_each_alone(
    predictor, monkeypatch, kind, multimask_output, return_logits, at_a_time
):
    monkeypatch.setattr("samtrain.inference.predictor.OBJECTS_AT_A_TIME", at_a_time)
    predictor.set_image(_image((97, 61)))
    options = {"multimask_output": multimask_output, "return_logits": return_logits}
    together = predictor.predict_many(**MANY[kind], **options)
    for row in range(3):
        prompt = {name.replace("boxes", "box"): rows[row] for name, rows in MANY[kind].items()}
        alone = predictor.predict(**prompt, **options)
        for many, one in zip(together, alone, strict=True):
            assert (many.shape[1:], many.dtype, len(many)) == (one.shape, one.dtype, 3)
            if one.dtype == bool:
                assert (many[row] != one).mean() < 1e-3
            else:
                np.testing.assert_allclose(many[row], one, atol=2e-5)


def test_few_objects_at_a_time_are_upscaled(predictor, monkeypatch):
    predictor.set_image(_image((97, 61)))
    sizes = []
    to_original = predictor.to_original
    monkeypatch.setattr(predictor, "to_original", lambda logits: sizes.append(len(logits)) or to_original(logits))
    monkeypatch.setattr("samtrain.inference.predictor.LOGITS_AT_A_TIME", 97 * 61 * 3 * 2 + 5)
    for multimask_output, expected in ((True, [2, 2, 1]), (False, [5])):
        sizes.clear()
        predictor.predict_many(boxes=np.array([[3, 4, 40, 30]] * 5), multimask_output=multimask_output)
        assert sizes == expected


def test_zero_objects_have_zero_masks(predictor):
    predictor.set_image(_image((97, 61)))
    for empty in ({"point_coords": np.zeros((0, 2, 2)), "point_labels": np.zeros((0, 2))}, {"boxes": np.zeros((0, 4))}):
        masks, ious, low_res = predictor.predict_many(**empty)
        assert (masks.shape, masks.dtype, ious.shape) == ((0, 3, 97, 61), bool, (0, 3))
        assert low_res.shape == (0, 3, CONFIG.mask_size, CONFIG.mask_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point_coords": [[[1, 2]]]}, "point_labels is missing"),
        ({"point_coords": [[1, 2]], "point_labels": [1]}, "with K labels for each object"),
        ({"point_coords": [[[1, 2]]], "point_labels": [[7]]}, "labels are 1 foreground"),
        ({"boxes": [1, 2, 3, 4]}, r"boxes are \(N, 4\) xyxy, got \(4,\)"),
        ({"boxes": [[1, 2, 3, 4, 5]] * 4}, r"boxes are \(N, 4\) xyxy, got \(4, 5\)"),
        ({"point_coords": [[[1, 2]]] * 65, "point_labels": [[1]] * 65, "boxes": [[1, 2, 3, 4]] * 66}, "different numbers"),
    ],
)
def test_other_prompts_of_many_objects_are_refused(predictor, arguments, message):
    predictor.set_image(_image((97, 61)))
    with pytest.raises(ValueError, match=message):
        predictor.predict_many(**{key: np.array(value) for key, value in arguments.items()})
    predictor.reset_image()
    with pytest.raises(RuntimeError, match="call set_image"):
        predictor.predict_many(boxes=np.zeros((1, 4)))


# embeddings from elsewhere


def test_an_embedding_replaces_its_image(predictor):
    other = SamPredictor(predictor.model)
    for size in SIZES:
        predictor.set_image(_image(size))
        other.set_image_embedding(predictor.get_image_embedding(), size)
        assert (other.original_size, other.input_size) == (size, predictor.input_size)
        prompt = {"point_coords": np.array([[3, 4]]), "point_labels": np.array([1]), "return_logits": True}
        for ours, theirs in zip(other.predict(**prompt), predictor.predict(**prompt), strict=True):
            assert np.array_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"of this model is \(1, 128, 12, 12\), got \(1, 128, 8, 8\)"):
        other.set_image_embedding(torch.zeros(1, 128, 8, 8), (97, 61))


# the image decoder


@pytest.mark.parametrize("points_per_batch", [1, 2, 64])
def test_the_decoder_predicts_in_original_pixels_like_predict(predictor, points_per_batch):
    predictor.set_image(_image((300, 201)))
    decoder = predictor.decoder(points_per_batch=points_per_batch)
    clicks = np.array([[20.0, 30], [150, 222], [77, 3]])
    coords = torch.tensor(clicks, dtype=torch.float32)[:, None]
    prompts = Prompts(torch.cat([coords, torch.zeros_like(coords)], dim=1), torch.tensor([[1, -1]] * 3))
    output = decoder.decode(prompts, True)
    frame = decoder.to_frame(output.low_res_logits[:, :1])
    assert frame.shape == (3, 1, 300, 201)
    for row, click in enumerate(clicks):
        logits, ious, low_res = predictor.predict(click[None], np.array([1]), return_logits=True)
        np.testing.assert_allclose(output.low_res_logits[row], low_res, atol=2e-5)
        np.testing.assert_allclose(output.iou_predictions[row], ious, atol=2e-5)
        np.testing.assert_allclose(frame[row, 0], logits[0], atol=2e-5)


def test_the_decoder_accepts_zero_objects(predictor):
    predictor.set_image(_image((97, 61)))
    output = predictor.decoder().decode(Prompts(torch.zeros(0, 2, 2), torch.zeros(0, 2, dtype=torch.int64)), True)
    assert output.low_res_logits.shape[:2] == (0, 3)
    assert predictor.decoder().to_frame(output.low_res_logits[:, :1]).shape == (0, 1, 97, 61)


@pytest.mark.parametrize("first", ["point", "box"])
def test_interact_clicks_on_an_image(predictor, first):
    predictor.set_image(_image((97, 61)))
    masks = torch.zeros(2, 97, 61, dtype=torch.bool)
    masks[0, 10:40, 5:30] = True
    masks[1, 50:90, 20:60] = True
    sampler = CentreSampler(num_points=3, first=first)
    turns = list(
        interact(
            predictor.decoder(points_per_batch=1),
            masks,
            sampler,
            schedule=sampler.schedule(),
            valid_NHW=torch.ones_like(masks),
            generator=torch.Generator(),
        )
    )
    assert [len(turn.prompts.labels[0]) for turn in turns] == [2, 3, 4]
    assert [turn.output.low_res_logits.shape[1] for turn in turns] == [3, 1, 1]
    assert all(turn.logits().shape == masks.shape for turn in turns)


def test_sizes_are_rounded_as_in_training():
    assert ResizeLongestSide(1024).size((300, 451)) == (681, 1024)
    assert ResizeLongestSide(128).size((7, 128)) == (7, 128)


def test_a_model_of_another_size_has_its_own_frame():
    predictor = SamPredictor(build_sam("vit_tiny", image_size=64))
    predictor.set_image(_image((97, 61)))
    assert predictor.input_size == (64, 40)
    assert isinstance(predictor.decoder(), ImageDecoder)
