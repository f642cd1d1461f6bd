"""Tests what predictors take as prompts: arrays, tensors and lists, for models of any precision, but no NaN."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from samtrain.inference.frames import make_predictor
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.modeling import Sam, build_sam

FRAMES = ("resize", "native")


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    return build_sam("vit_tiny", image_size=64)


def _image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)


def _prompts(sam: Sam) -> dict[str, np.ndarray]:
    side = sam.config.mask_size
    return {
        "point_coords": np.array([[20.0, 20], [40, 30]]), "point_labels": np.array([1, 0]), "box": np.array([10.0, 10, 60, 60]),
        "mask_input": np.random.default_rng(1).normal(size=(1, side, side)),
    }  # fmt: skip


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_answers_are_float32_whatever_the_models_type(sam: Sam, frame: str, dtype: torch.dtype) -> None:
    answers = []
    for model in (sam, copy.deepcopy(sam).to(dtype)):
        predictor = make_predictor(model, frame=frame)
        predictor.set_image(_image())
        answers.append(predictor.predict(**_prompts(sam), return_logits=True))
        assert predictor.predict(**_prompts(sam))[0].dtype == bool
    for full, other in zip(*answers, strict=True):
        assert full.dtype == other.dtype == np.float32
        np.testing.assert_allclose(full, other, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("frame", FRAMES)
def test_autocast_may_begin_and_end_between_calls(sam: Sam, frame: str) -> None:
    """Also where an image is encoded under autocast and clicked without it, or the other way round."""
    predictor = make_predictor(sam, frame=frame)
    prompts = _prompts(sam)
    predictor.set_image(_image())
    plain = predictor.predict(**prompts, return_logits=True)
    for inside in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            predictor.set_image(_image())
            answers = [predictor.predict(**prompts, return_logits=True)]
        answers.append(predictor.predict(**prompts, return_logits=True))
        with torch.autocast("cpu", torch.bfloat16):
            answers.append(predictor.predict(**prompts, return_logits=True))
        for answer in answers:
            assert all(each.dtype == np.float32 for each in answer)
            np.testing.assert_allclose(answer[2], plain[2], atol=0.2)
    for each, expected in zip(answers[0], plain, strict=True):  # the last turn began without autocast
        np.testing.assert_array_equal(each, expected)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(
    "form",
    [lambda x: x.tolist(), torch.tensor, lambda x: torch.tensor(x, dtype=torch.float32, requires_grad=True), np.float32],
    ids=["lists", "tensors", "tensors with gradients", "float32"],
)
def test_prompts_in_any_form_mean_the_same(sam: Sam, frame: str, form) -> None:
    predictor = make_predictor(sam, frame=frame)
    predictor.set_image(_image())
    prompts = _prompts(sam)
    expected = predictor.predict(**prompts)
    for ours, theirs in zip(predictor.predict(**{k: form(v) for k, v in prompts.items()}), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    boxes = np.stack([prompts["box"], prompts["box"] + 5])
    for ours, theirs in zip(predictor.predict_many(boxes=form(boxes)), predictor.predict_many(boxes=boxes), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({"point_coords": [[np.nan, 20]], "point_labels": [1]}, "point_coords holds NaN"),
        ({"point_coords": torch.tensor([[np.inf, 20]]), "point_labels": [1]}, "point_coords holds NaN or infinity"),
        ({"point_coords": [[20, 20]], "point_labels": [0.5]}, r"labels are 1 foreground, .* got \[0.5\]"),
        ({"point_coords": [[20, 20]], "point_labels": ["on"]}, "point_labels cannot be read"),
        ({"point_coords": [[20, 20], [1]], "point_labels": [1, 1]}, "point_coords cannot be read"),
        ({"box": [1, 2, np.nan, 4]}, "box holds NaN"),
        ({"box": np.array([1, 2, 3, 4j])}, "box cannot be read .*complex"),
        ({"box": torch.tensor([1, 2, 3, 4j])}, "box cannot be read .*complex"),
        ({"box": torch.zeros(2, 4)}, r"one box of 4 numbers, xyxy, got shape \(2, 4\)"),
        ({"mask_input": np.full((1, 32, 32), np.nan)}, "mask_input holds NaN"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(sam: Sam, prompts: dict, said: str) -> None:
    predictor = make_predictor(sam)
    predictor.set_image(_image())
    with pytest.raises(ValueError, match=said):
        predictor.predict(**prompts)


def test_tensors_with_nan_are_refused(sam: Sam) -> None:
    predictor = make_predictor(sam)
    predictor.set_image(_image())
    with pytest.raises(ValueError, match="clicks hold NaN"):
        predictor.predict_torch(torch.full((1, 1, 2), torch.nan), torch.ones(1, 1))
    with pytest.raises(ValueError, match="boxes hold NaN"):
        predictor.predict_torch(None, None, torch.full((1, 4), torch.nan))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crop_n_layers": -1}, "crop_n_layers is -1: use a whole number of at least 0"),
        ({"pred_iou_thresh": None}, r"pred_iou_thresh is None: use a number \(generator.pred_iou_thresh\)"),
        ({"crop_n_layers": None}, "crop_n_layers is None: use a whole number"),
        ({"crop_n_layers": 1.5}, "crop_n_layers is 1.5"),
        ({"crop_n_layers": 1, "crop_overlap_ratio": 2.0}, "crop_overlap_ratio is 2.0: use a number of at least 0, at most 1"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh is nan"),
        ({"points_per_side": 0}, "points_per_side is 0"),
        ({"points_per_side": "many"}, "points_per_side is 'many'"),
        ({"box_nms_thresh": 70}, "box_nms_thresh is 70"),
        ({"min_mask_region_area": -1}, "min_mask_region_area is -1"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor is 0"),
        ({"points_per_side": None, "point_grids": [np.full((2, 2), 5.0)]}, "a point outside of the image"),
        ({"points_per_side": None, "point_grids": [np.full((2, 2), np.nan)]}, "a point outside of the image"),
    ],
)
def test_settings_of_the_generator_have_ranges(sam: Sam, settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SamAutomaticMaskGenerator(sam, **settings)


def test_one_array_is_the_grid_of_the_image(sam: Sam) -> None:
    grid = np.random.default_rng(0).random((5, 2))
    settings = {"points_per_side": None, "pred_iou_thresh": -9.0, "stability_score_thresh": 0.0, "output_mode": "coco_rle"}
    given = [SamAutomaticMaskGenerator(sam, point_grids=each, **settings).generate(_image()) for each in (grid, [grid])]
    assert given[0] == given[1]
