"""Tests the generator: its records equal those of segment_anything, in the same order; and its additions."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image

from samtrain import SamAutomaticMaskGenerator
from samtrain.modeling import build_sam
from samtrain.ops.rle import decode_rle
from tests.colour_sam import ColourSam, OfficialColourSam

GRID = 12


def make_image(size: tuple[int, int]) -> np.ndarray:
    """Returns a photo of scikit-image at an odd size."""
    photos = pytest.importorskip("skimage.data", reason="needs images: pip install scikit-image")
    return np.array(Image.fromarray(photos.coffee()).resize(size[::-1], Image.Resampling.BILINEAR))


@pytest.fixture(scope="module")
def ours() -> ColourSam:
    return ColourSam().eval()


@pytest.fixture(scope="module")
def official():
    pytest.importorskip("segment_anything", reason="needs the reference: pip install segment-anything")
    return OfficialColourSam()


def generated(ours, **settings) -> list[dict]:
    image = settings.pop("image", None)
    return SamAutomaticMaskGenerator(ours, **settings).generate(make_image((181, 263)) if image is None else image)


def assert_same(theirs: list[dict], own: list[dict]) -> None:
    assert len(theirs) == len(own)
    for a, b in zip(theirs, own, strict=True):
        assert list(a) == list(b)
        assert a["point_coords"] == b["point_coords"] and a["crop_box"] == b["crop_box"]
        assert a["predicted_iou"] == pytest.approx(b["predicted_iou"], abs=1e-6)
        # an empty mask's is 0/0 there, and JSON has no NaN
        assert np.nan_to_num(a["stability_score"]) == pytest.approx(b["stability_score"], abs=1e-3)
        assert np.allclose(a["bbox"], b["bbox"], atol=1)
        assert a["area"] == pytest.approx(b["area"], rel=1e-3, abs=2)


# ---- as segment_anything


@pytest.mark.parity
@pytest.mark.parametrize("size", [(181, 263), (300, 97), (256, 256), (64, 500)])
@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("min_area", [0, 60])
def test_records_equal_those_of_segment_anything(ours, official, size, layers, min_area) -> None:
    pytest.importorskip("cv2", reason="segment_anything's clean-up needs OpenCV: pip install 'samtrain[release]'")
    from segment_anything import SamAutomaticMaskGenerator as Official

    settings = {
        "points_per_side": GRID, "crop_n_layers": layers, "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": min_area, "pred_iou_thresh": 0.9, "stability_score_thresh": 0.5,
    }  # fmt: skip
    theirs, own = Official(official, **settings).generate(make_image(size)), generated(ours, image=make_image(size), **settings)
    assert len(own) >= 15  # or this shows nothing
    assert_same(theirs, own)
    apart = [(a["segmentation"] != b["segmentation"]).sum() for a, b in zip(theirs, own, strict=True)]
    assert max(apart) <= 2 and np.mean(apart) < 0.1  # pixels whose logit is 0 but for rounding


@pytest.mark.parity
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.97, 0.0), (0.0, 0.95), (0.9, 0.95)])
def test_thresholds_that_keep_everything_or_little(ours, official, thresholds) -> None:
    """0 lets everything pass, empty masks too."""
    from segment_anything import SamAutomaticMaskGenerator as Official

    settings = {"points_per_side": 6, "pred_iou_thresh": thresholds[0], "stability_score_thresh": thresholds[1]}
    settings |= {"box_nms_thresh": 1.0, "stability_score_offset": 0.5}
    image = make_image((120, 90))
    assert_same(Official(official, **settings).generate(image), generated(ours, image=image, **settings))


@pytest.mark.parity
def test_point_grids_and_small_batches(ours, official) -> None:
    from segment_anything import SamAutomaticMaskGenerator as Official

    grids = [np.random.default_rng(0).random((7, 2)), np.random.default_rng(1).random((3, 2))]
    settings = {"points_per_side": None, "point_grids": grids, "crop_n_layers": 1, "points_per_batch": 4}
    settings |= {"pred_iou_thresh": 0.9, "stability_score_thresh": 0.5}
    image = make_image((150, 200))
    assert_same(Official(official, **settings).generate(image), generated(ours, image=image, **settings))


@pytest.mark.parity
def test_output_modes_are_equivalent(ours, official) -> None:
    from segment_anything import SamAutomaticMaskGenerator as Official

    settings = {"points_per_side": 8, "pred_iou_thresh": 0.9, "stability_score_thresh": 0.5}
    image = make_image((90, 120))
    for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
        theirs = Official(official, **settings, output_mode=mode).generate(image)
        own = generated(ours, image=image, **settings, output_mode=mode)
        for a, b in zip(theirs, own, strict=True):
            if mode == "binary_mask":
                assert b["segmentation"].dtype == bool and b["segmentation"].shape == (90, 120)
            else:
                assert type(a["segmentation"]["counts"]) is type(b["segmentation"]["counts"])
                assert a["segmentation"]["size"] == b["segmentation"]["size"]
    json.dumps(own)


@pytest.mark.parity
def test_parameters_and_defaults_equal_those_of_segment_anything() -> None:
    official = pytest.importorskip("segment_anything").SamAutomaticMaskGenerator
    theirs = inspect.signature(official.__init__).parameters
    own = inspect.signature(SamAutomaticMaskGenerator.__init__).parameters
    assert [(p.name, p.default) for p in theirs.values()] == [(p.name, p.default) for p in list(own.values())[: len(theirs)]]


@pytest.mark.parity
def test_unfiltered_candidates_of_a_network(official) -> None:
    """Compares all masks of random weights without any filter, because NMS would choose among them by chance."""
    from segment_anything import SamAutomaticMaskGenerator as Official

    from tests.official import official_like

    torch.manual_seed(1)
    sam = build_sam("vit_tiny")
    for parameter in sam.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02
    settings = {"points_per_side": 5, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    image = make_image((77, 131))
    theirs = Official(official_like(sam), **settings).generate(image)
    own = SamAutomaticMaskGenerator(sam, **settings).generate(image)
    assert len(own) > 3  # boxes of noise are the image's, and equal boxes go even at 1.0
    assert [r["point_coords"] for r in own] == [r["point_coords"] for r in theirs]
    for a, b in zip(theirs, own, strict=True):
        union = (a["segmentation"] | b["segmentation"]).sum()
        assert (a["segmentation"] & b["segmentation"]).sum() >= 0.99 * union


# ---- what does not change the records


def test_bounds_drop_no_mask_that_would_pass(ours, monkeypatch) -> None:
    """Compares records with and without the bounds, for a soft ramp with a hard square on it."""
    from samtrain.inference.candidates import MaskTests

    ramp = np.tile(np.linspace(100, 140, 200, dtype=np.uint8)[None, :, None], (150, 1, 3))
    ramp[40:80, 60:120] = 220
    settings = {"points_per_side": GRID, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.9, "output_mode": "coco_rle"}
    settings["image"] = ramp
    bounded = generated(ours, **settings)
    dropped = []
    whole = MaskTests._possibly_stable

    def all_of_them(self, logits, crops, reaches):
        dropped.append(len(crops) - len(whole(self, logits, crops, reaches)))
        return list(range(len(crops)))

    monkeypatch.setattr(MaskTests, "_possibly_stable", all_of_them)
    assert generated(ours, **settings) == bounded
    assert sum(dropped) > 0


@pytest.mark.parametrize("settings", [{}, {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}])
def test_masks_rendered_together_are_those_rendered_one_by_one(ours, settings, monkeypatch) -> None:
    """A GPU renders the masks of a crop together."""
    from samtrain.inference import candidates

    settings = {"points_per_side": GRID, "pred_iou_thresh": 0.4, "stability_score_thresh": 0.5, **settings}
    one_by_one = generated(ours, **settings, output_mode="coco_rle")
    monkeypatch.setattr(candidates, "ONE_BY_ONE", set())
    monkeypatch.setattr(candidates, "PIXELS_TOGETHER", 200_000)
    assert generated(ours, **settings, output_mode="coco_rle") == one_by_one
    assert len(one_by_one) > 3


@pytest.mark.parametrize(
    "settings", [{"points_per_batch": 5}, {"crops_per_batch": 4}, {"crops_per_batch": 100, "points_per_batch": 7}]
)
def test_batch_sizes_change_nothing(ours, settings) -> None:
    base = {"points_per_side": 8, "crop_n_layers": 1, "pred_iou_thresh": 0.9, "stability_score_thresh": 0.6}
    base |= {"output_mode": "coco_rle"}
    assert generated(ours, **base, **settings) == generated(ours, **base)


def test_generate_many_equals_generate_for_each_image(ours) -> None:
    generator = SamAutomaticMaskGenerator(
        ours, points_per_side=6, crop_n_layers=1, pred_iou_thresh=0.9, stability_score_thresh=0.6, output_mode="coco_rle",
        crops_per_batch=3,
    )  # fmt: skip
    images = [make_image(size) for size in ((100, 80), (60, 140), (90, 90))]
    seen = []
    many = list(generator.generate_many(images, progress=lambda done, todo: seen.append((done, todo))))
    assert many == [generator.generate(image) for image in images]
    assert seen == sorted(seen) and seen[-1] == (3 * (36 + 4 * 36), 3 * (36 + 4 * 36))


# ---- beyond segment_anything


def test_masks_of_nearly_the_whole_image_are_dropped(ours) -> None:
    image = np.full((60, 80, 3), 100, np.uint8)
    image[20:40, 20:40] = 200
    settings = {"points_per_side": 8, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}
    areas = sorted(record["area"] for record in generated(ours, image=image, **settings))
    assert areas[-1] > 0.8 * 60 * 80
    kept = sorted(record["area"] for record in generated(ours, image=image, **settings, max_mask_area=0.8))
    assert kept == [area for area in areas if area < 0.8 * 60 * 80] and kept


def test_sa1b_drops_a_mask_of_small_islands_that_segment_anything_keeps(ours) -> None:
    image = np.full((64, 64, 3), 30, np.uint8)
    image[8:14, 8:14], image[40:60, 40:60] = 200, 120
    settings = {"points_per_side": 16, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5, "min_mask_region_area": 100}
    kept = generated(ours, image=image, **settings)
    assert any(record["area"] < 100 for record in kept)
    dropped = generated(ours, image=image, **settings, drop_small_masks=True)
    assert dropped and all(record["area"] >= 100 for record in dropped)


def test_near_duplicates_are_dropped_by_mask_iou(ours) -> None:
    settings = {"points_per_side": GRID, "pred_iou_thresh": 0.9, "stability_score_thresh": 0.5, "box_nms_thresh": 0.95}
    before = generated(ours, **settings)
    after = generated(ours, **settings, mask_nms_thresh=0.5)
    masks = np.array([record["segmentation"] for record in after]).reshape(len(after), -1).astype(float)
    shared = masks @ masks.T
    ious = shared / (masks.sum(1)[:, None] + masks.sum(1)[None] - shared)
    np.fill_diagonal(ious, 0)
    assert ious.max() <= 0.5 and len(after) < len(before)
    best = max(before, key=lambda record: record["predicted_iou"])
    assert any((best["segmentation"] == record["segmentation"]).all() for record in after)


def test_records_in_the_frame_of_a_smaller_image(ours) -> None:
    """Crops are cut from the large image; masks, boxes, clicks and crop boxes are in the frame of the small one."""
    image = make_image((400, 600))
    settings = {"points_per_side": GRID, "pred_iou_thresh": 0.9, "stability_score_thresh": 0.6, "crop_n_layers": 1}
    generator = SamAutomaticMaskGenerator(ours, **settings, output_mode="coco_rle")
    small = generator.generate(image, output_size=(200, 300))
    large = generator.generate(image)
    assert small and {tuple(record["segmentation"]["size"]) for record in small} == {(200, 300)}
    for record in small:
        mask = decode_rle(record["segmentation"])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert record["bbox"] == [columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0]]
        assert record["area"] == mask.sum()
        x, y, w, h = record["crop_box"]
        assert x >= 0 and x + w <= 300 and y >= 0 and y + h <= 200
        assert x <= record["point_coords"][0][0] <= x + w and y <= record["point_coords"][0][1] <= y + h
    # those that both have show the same
    there = {(tuple(np.array(r["point_coords"][0]) / 2), r["predicted_iou"]): r for r in large}
    pairs = [(r, there[key]) for r in small if (key := (tuple(r["point_coords"][0]), r["predicted_iou"])) in there]
    assert len(pairs) > 0.5 * len(small)
    assert np.median([4 * a["area"] / b["area"] for a, b in pairs]) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"points_per_side": None}, "points_per_side or point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "points_per_side or point_grids"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1}, "2 layers"),
        ({"points_per_side": 4, "crop_n_layers": 3, "crop_n_points_downscale_factor": 2}, "points a side"),
        ({"output_mode": "png"}, "binary_mask"),
        ({"points_per_batch": 0}, "points_per_batch is 0: use a whole number of at least 1"),
        ({"stability_score_offset": -1.0}, "use a number of at least 0"),
    ],
)
def test_impossible_settings_are_refused(ours, settings, said) -> None:
    with pytest.raises(ValueError, match=said):
        SamAutomaticMaskGenerator(ours, **settings)


def test_an_image_is_never_enlarged(ours) -> None:
    with pytest.raises(ValueError, match="enlarged"):
        SamAutomaticMaskGenerator(ours, points_per_side=2).generate(make_image((50, 60)), output_size=(51, 60))


@pytest.mark.parametrize("image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32), np.zeros((0, 5, 3), np.uint8)])
def test_arrays_that_are_no_images_are_refused(ours, image) -> None:
    with pytest.raises(ValueError, match="uint8 image"):
        SamAutomaticMaskGenerator(ours, points_per_side=2).generate(image)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2), (5, 5), (2, 102)])
@pytest.mark.parametrize("layers", [1, 2])
def test_tiny_images(ours, size, layers) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    settings = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "crop_n_layers": layers}
    for record in SamAutomaticMaskGenerator(ours, **settings, min_mask_region_area=2).generate(image):
        assert record["segmentation"].shape == size
