"""Tests that a model is used in the frame in which it was trained, whatever file it went through."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from samtrain.inference.frames import make_predictor
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.inference.predictor import SamPredictor
from samtrain.inference.tiled import TiledPredictor
from samtrain.modeling import Sam, build_sam, load_sam, save_official, save_safetensors
from samtrain.modeling.sam import SamConfig
from samtrain.ops.rle import encode_mask, rle_iou
from tests.colour_sam import CONFIG, ColourSam

S = 64
CLICK = {"point_coords": [[150, 40]], "point_labels": [1]}


@pytest.fixture(scope="module")
def native() -> Sam:
    torch.manual_seed(0)
    return build_sam("vit_tiny", image_size=S, frame="native")


def _image(size: tuple[int, int] = (120, 200)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def _lightning(sam: Sam, path: Path) -> None:
    state = {f"sam.{key}": value for key, value in sam.state_dict().items()}
    torch.save({"state_dict": state, "sam_config": sam.config.to_dict()}, path)


@pytest.mark.parametrize("write", [save_official, save_safetensors, _lightning])
def test_a_file_says_how_images_are_shown(tmp_path: Path, native: Sam, write: Callable[[Sam, Path], object]) -> None:
    """The frame, the channels and the normalisation come back, and the predictor follows them."""
    sam = copy.deepcopy(native)
    sam.config = replace(sam.config, pixel_mean=(1.0, 2.0, 3.0), pixel_std=(4.0, 5.0, 6.0))
    write(sam, tmp_path / "sam.pth")
    for loaded in (load_sam(tmp_path / "sam.pth"), build_sam("vit_tiny", image_size=S, checkpoint=tmp_path / "sam.pth")):
        assert loaded.config == sam.config
        assert loaded.pixel_mean.flatten().tolist() == [1, 2, 3] and loaded.pixel_std.flatten().tolist() == [4, 5, 6]
        assert type(SamPredictor(loaded)) is TiledPredictor


def test_a_file_that_does_not_say_it_is_shown_resized_images(tmp_path: Path, native: Sam) -> None:
    """Official files have no config; those of earlier versions have one without the frame."""
    torch.save(native.state_dict(), tmp_path / "official.pth")
    older = {k: v for k, v in native.config.to_dict().items() if k not in ("frame", "channels", "pixel_mean", "pixel_std")}
    torch.save({"state_dict": native.state_dict(), "sam_config": older}, tmp_path / "older.ckpt")
    for name in ("official.pth", "older.ckpt"):
        sam = load_sam(tmp_path / name)
        assert sam.config.frame == "resize" and type(SamPredictor(sam)) is SamPredictor


def test_the_predictor_follows_the_model(native: Sam) -> None:
    followed, tiled = SamPredictor(native), TiledPredictor(native)
    for predictor in (followed, tiled):
        predictor.set_image(_image())
    for ours, theirs in zip(followed.predict(**CLICK), tiled.predict(**CLICK), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # copies keep class and image
    for other in (copy.deepcopy(followed), pickle.loads(pickle.dumps(SamPredictor(native)))):
        assert type(other) is TiledPredictor
    assert TiledPredictor(native, overlap=0.25).overlap == 0.25
    assert type(SamPredictor(sam_model=native)) is TiledPredictor


def test_another_frame_can_be_asked_for(native: Sam, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="samtrain")
    assert type(make_predictor(native)) is TiledPredictor
    assert "tiles of 64 x 64 of their own pixels, as in the training of the model (frame native)." in caplog.text
    assert type(make_predictor(native, frame="resize")) is SamPredictor
    assert "(frame resize), although the model was trained with frame native." in caplog.text
    with pytest.raises(ValueError, match="frame is 'tiles': use resize or native"):
        make_predictor(native, frame="tiles")


@pytest.mark.parametrize(
    "values", [{"frame": "crop"}, {"channels": "BGR"}, {"pixel_std": [1.0, 0.0, 1.0]}, {"pixel_mean": [1.0]}]
)
def test_inputs_that_cannot_be_prepared_are_refused(native: Sam, values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SamConfig.from_dict({**native.config.to_dict(), **values})


# ---- the generator


class NativeColourSam(ColourSam):
    """Finds regions of one colour in tiles of 256 x 256 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.config = replace(self.config, frame="native")


def _discs(size: tuple[int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns a grey image with discs of 14 and 22 pixels in radius, apart from each other and of unlike colours, and masks."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    image, masks = np.full((height, width, 3), 128, np.uint8), []
    colours = product((0, 60, 190, 250), repeat=3)
    for y in range(40, height - 30, 60):
        for x in range(40, width - 30, 60):
            mask = (rows - y) ** 2 + (columns - x) ** 2 <= (14, 22)[len(masks) % 2] ** 2
            image[mask] = next(colours)
            masks.append(mask)
    return image, masks


def _best_ious(generator: SamAutomaticMaskGenerator, image: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    found = [record["segmentation"] for record in generator.generate(image)]
    return rle_iou([encode_mask(mask) for mask in masks], found).max(axis=1)


def test_the_generator_cuts_tiles_for_a_model_that_was_trained_on_them() -> None:
    """Every object is found at the scale of the image, once, also where tiles meet; resized, the small ones are lost."""
    image, masks = _discs((300, 480))
    settings = {"points_per_side": 14, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "output_mode": "coco_rle"}
    generator = SamAutomaticMaskGenerator(NativeColourSam().eval(), **settings, max_mask_area=0.1)
    tiled = _best_ious(generator, image, masks)
    resized = _best_ious(SamAutomaticMaskGenerator(NativeColourSam().eval(), **settings, frame="resize"), image, masks)
    assert tiled.min() > 0.6 and tiled.mean() > resized.mean() + 0.1, (tiled, resized)
    records = generator.generate(image)
    assert all(record["crop_box"][2:] == [CONFIG.image_size] * 2 for record in records)
    for record in records:
        x, y = record["point_coords"][0]
        left, top, width, height = record["crop_box"]
        assert left <= x <= left + width and top <= y <= top + height


def test_an_image_of_one_tile_is_generated_without_tiling() -> None:
    image, _ = _discs((256, 256))
    settings = {"points_per_side": 8, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.5, "output_mode": "coco_rle"}
    tiled = SamAutomaticMaskGenerator(NativeColourSam().eval(), **settings).generate(image)
    assert tiled and tiled == SamAutomaticMaskGenerator(ColourSam().eval(), **settings).generate(image)


@pytest.mark.parametrize("size", [(1, 1), (300, 1), (40, 900), (257, 256)])
def test_tiles_of_odd_images(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    counts: list[tuple[int, int]] = []
    generator = SamAutomaticMaskGenerator(NativeColourSam().eval(), **settings)
    records = generator.generate(image[::-1], progress=lambda done, todo: counts.append((done, todo)))
    assert all(record["segmentation"].shape == size for record in records)
    assert counts[-1][0] == counts[-1][1] == max(round(4 * size[0] / 256), 1) * max(round(4 * size[1] / 256), 1)


def test_tiles_have_no_layers_of_crops(caplog: pytest.LogCaptureFixture) -> None:
    image, settings = _image((300, 256)), {"points_per_side": 4, "pred_iou_thresh": 0.0, "output_mode": "coco_rle"}
    without = SamAutomaticMaskGenerator(NativeColourSam().eval(), **settings).generate(image)
    assert SamAutomaticMaskGenerator(NativeColourSam().eval(), **settings, crop_n_layers=1).generate(image) == without
    assert "crop_n_layers is 1 and is not used, because images are cut into tiles already." in caplog.text
