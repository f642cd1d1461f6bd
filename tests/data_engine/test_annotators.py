"""The simulated annotator: what it draws, in which order, how long it takes, and when it leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pretend_predictor import PretendPredictor, eroded, scene

from samtrain.data_engine.annotators import DONE, TIME, ImageAnnotation, ImageToAnnotate, SimulatedAnnotator
from samtrain.data_engine.prominence import prominence
from samtrain.data_engine.time_model import TimeModel
from samtrain.ops.rle import decode_rle, encode_mask


def make_image(seed: int = 0, num: int = 5) -> ImageToAnnotate:
    image, masks = scene(seed, num=num)
    return ImageToAnnotate(f"scene_{seed}", image, [{"segmentation": encode_mask(mask)} for mask in masks])


def nothing(whole: np.ndarray, clicks: int) -> np.ndarray:
    return np.zeros_like(whole)


def annotate(answer, seed: int = 0, **settings) -> ImageAnnotation:
    view, predictor = make_image(seed), PretendPredictor(answer)
    predictor.set_image(view.image)
    return SimulatedAnnotator(**settings).annotate(view, predictor)


def test_a_good_model_costs_one_click_per_object() -> None:
    result = annotate(lambda whole, clicks: whole)
    assert result.reason == DONE and not result.discarded and len(result.masks) == 5
    assert all(mask.clicks == 1 and mask.strokes == 0 and mask.good for mask in result.masks)
    assert all(mask.seconds == TimeModel().clicks(1) for mask in result.masks)
    assert all(mask.predicted_iou == pytest.approx(0.8) and mask.stability_score == 1 for mask in result.masks)


def test_clicks_continue_until_the_mask_is_good_and_keep_their_order() -> None:
    result = annotate(eroded(3))
    assert all(mask.good and 1 < mask.clicks <= 5 for mask in result.masks)
    for mask in result.masks:
        x, y = mask.point_coords[0]
        assert len(mask.point_coords) == len(mask.point_labels) == mask.clicks
        assert mask.point_labels[0] == 1 and mask.mask[int(y), int(x)]
        assert mask.seconds == TimeModel().clicks(mask.clicks)


def test_the_most_prominent_object_comes_first() -> None:
    view = make_image(3)
    result = annotate(lambda whole, clicks: whole, seed=3)
    order = [prominence(view.image, mask.mask) for mask in result.masks]
    assert order == sorted(order, reverse=True)
    assert sorted(mask.object_index for mask in result.masks) == list(range(5))


def test_the_brush_helps_where_the_model_does_not() -> None:
    result = annotate(eroded(20), max_clicks=2, time_limit=90)
    assert all(mask.strokes > 0 and mask.good and mask.iou >= 0.9 for mask in result.masks)
    assert all(mask.seconds > TimeModel().clicks(2) for mask in result.masks)


def test_masks_are_drawn_and_never_the_ground_truth() -> None:
    view = make_image()
    objects = [item["segmentation"] for item in view.objects]
    for answer in (nothing, eroded(2)):
        result = annotate(answer, max_clicks=2, time_limit=60)
        assert result.masks and all(encode_mask(mask.mask) not in objects for mask in result.masks)


def test_a_mask_over_the_time_limit_ends_the_image() -> None:
    result = annotate(nothing, time_limit=20.0)
    assert result.reason == TIME and len(result.masks) + len(result.discarded) == 1
    (mask,) = [*result.masks, *result.discarded]
    assert 20 < mask.seconds < 20 + TimeModel().brush_stroke(12, first=True)


def test_a_probe_draws_all_objects_with_the_same_hand() -> None:
    left = annotate(nothing, time_limit=20.0)
    stayed = annotate(nothing, time_limit=20.0, leaves_image=False)
    assert stayed.reason == DONE and len(stayed.masks) + len(stayed.discarded) == 5
    first, again = left.masks + left.discarded, stayed.masks + stayed.discarded
    same = next(mask for mask in again if mask.object_index == first[0].object_index)
    assert (same.mask == first[0].mask).all() and same.seconds == first[0].seconds


def test_a_bad_mask_is_discarded_at_the_end_of_its_time() -> None:
    result = annotate(nothing, time_limit=5.0, max_clicks=3, min_iou=0.9)
    assert not result.masks and len(result.discarded) == 1 and result.discarded[0].iou < 0.9


def test_a_worse_click_is_undone_but_its_time_counts() -> None:
    def worse(whole: np.ndarray, clicks: int) -> np.ndarray:
        return eroded(2)(whole, clicks) if clicks == 1 else np.zeros_like(whole)

    result = annotate(worse, time_limit=14.0, max_clicks=5, min_iou=0.1)
    mask = result.masks[0]
    assert mask.clicks == 5 and len(mask.point_coords) == 1 and mask.iou > 0.3


def test_a_slow_person_places_no_more_clicks_than_the_time_allows() -> None:
    slow = TimeModel(click=10.0)
    result = annotate(nothing, time_model=slow, max_clicks=9)
    assert (result.masks + result.discarded)[0].clicks == 3


def test_equal_seeds_draw_equal_masks_whatever_the_chunks() -> None:
    runs = [annotate(nothing, leaves_image=False, chunk=chunk, seed=2) for chunk in (1, 3, 16)]
    for run in runs[1:]:
        assert all((a.mask == b.mask).all() for a, b in zip(runs[0].masks, run.masks, strict=True))


def test_images_without_objects_are_done_at_once() -> None:
    predictor, view = PretendPredictor(lambda whole, clicks: whole), make_image()
    predictor.set_image(view.image)
    empty = encode_mask(np.zeros(view.image.shape[:2], dtype=bool))
    for objects in ([], [{"segmentation": empty}]):
        result = SimulatedAnnotator().annotate(replace(view, objects=objects), predictor)
        assert (result.masks, result.discarded, result.reason, result.masks_in_time) == ([], [], DONE, 0)
    assert predictor.decoded == 0


def test_objects_with_a_mask_are_not_drawn_again() -> None:
    """A locked mask of at least `has_mask_iou` with an object counts for it; the other objects are drawn."""
    view, predictor = make_image(1), PretendPredictor(lambda whole, clicks: whole)
    predictor.set_image(view.image)
    masks = [decode_rle(each["segmentation"]) for each in view.objects]
    half, less = masks[1].copy(), masks[2].copy()
    half[np.flatnonzero(half.any(axis=1))[0] : np.flatnonzero(half.any(axis=1))[0] + 3] = False
    less[: int(np.argwhere(less)[:, 0].mean()) + 1] = False
    assert 0.5 <= half.sum() / masks[1].sum() < 1 and less.sum() / masks[2].sum() < 0.5
    locked = [encode_mask(mask) for mask in (masks[0], half, less)]
    drawn = SimulatedAnnotator().annotate(replace(view, locked=locked), predictor)
    assert sorted(mask.object_index for mask in drawn.masks) == [2, 3, 4]
    everything = [each["segmentation"] for each in view.objects]
    none = SimulatedAnnotator().annotate(replace(view, locked=everything), predictor)
    assert none.masks == [] and none.reason == DONE


def test_an_annotator_who_stays_reports_the_masks_it_had_in_time() -> None:
    left = annotate(nothing, time_limit=20.0)
    stayed = annotate(nothing, time_limit=20.0, leaves_image=False)
    assert stayed.masks_in_time == len(left.masks) == left.masks_in_time < len(stayed.masks)


def test_wrong_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="annotator.min_iou is 0.95 and annotator.target_iou is 0.9"):
        SimulatedAnnotator(min_iou=0.95)
    with pytest.raises(ValueError, match="annotator.time_limit is inf"):
        SimulatedAnnotator(time_limit=float("inf"))
