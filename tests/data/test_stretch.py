"""Values that mean "no data" do not decide the grey levels of the others, and a prepared image looks like the file itself."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtrain.data.decode import decode_image
from samtrain.data.prepare.importers import PrepareConfig, prepare
from samtrain.data.shards import index_tar, read_record
from samtrain.data.stretch import stretch
from samtrain.ops.rle import encode_mask

H, W, STRIP = 40, 50, 4
RAMP = np.linspace(60, 200, H * W).reshape(H, W).astype(np.float32)
NO_DATA = [-9999.0, -32768.0, float(np.finfo(np.float32).min), 1e20, float("nan"), float("inf"), -float("inf")]


def with_strip(value: float, dtype: type = np.float32) -> np.ndarray:
    samples = RAMP.astype(dtype)
    samples[:STRIP] = value
    return samples


@pytest.mark.parametrize("value", NO_DATA)
def test_a_strip_without_data_leaves_the_grey_levels_to_the_rest(value: float) -> None:
    pixels = stretch(with_strip(value), "here")
    assert (pixels[:STRIP] == 0).all()
    assert np.array_equal(pixels[STRIP:], stretch(RAMP[STRIP:], "here"))
    assert pixels[STRIP:].max() == 255 and len(np.unique(pixels)) > 200


def test_integers_may_have_a_strip_without_data_too() -> None:
    assert len(np.unique(stretch(with_strip(-9999, np.int32), "here"))) > 100


@pytest.mark.parametrize(("value", "dtype"), [(9999, np.float32), (4000, np.float32), (65535, np.uint16), (99999, np.int32)])
def test_a_far_constant_above_stays_white_and_leaves_the_grey_levels_to_the_rest(value: float, dtype: type) -> None:
    """It may mean "no data" or be saturated, so it stays apart from the others."""
    pixels = stretch(with_strip(value, dtype), "here")
    assert (pixels[:STRIP] == 255).all()
    assert len(np.unique(pixels[STRIP:])) > 100 and pixels[STRIP:].max() < 200


def test_a_far_constant_of_zero_stays_black_and_leaves_the_grey_levels_to_the_rest() -> None:
    """It may mean "no data" in an elevation model, or be the background of objects that all look alike."""
    for dtype in (np.float32, np.uint16):
        samples = with_strip(0, dtype)
        samples[STRIP:] += 2000
        pixels = stretch(samples, "here")
        assert (pixels[:STRIP] == 0).all() and len(np.unique(pixels[STRIP:])) > 100 and pixels[STRIP:].min() > 50


def test_several_values_may_mean_no_data() -> None:
    samples = with_strip(-9999)
    samples[-1], samples[-2, :9] = -32768, 32767
    pixels = stretch(samples, "here")
    assert (pixels[:STRIP] == 0).all() and (pixels[-1] == 0).all()
    assert len(np.unique(pixels[STRIP:-2])) > 150


def test_measurements_are_not_taken_for_missing_ones() -> None:
    """A dark background of 0, bright pixels, and a negative value that are not far away keep their places."""
    for value, pixel in ((0, 0), (1400, 255), (-100, 0)):
        samples = with_strip(value)
        low, high = np.percentile(samples, (0.175, 99.825))
        expected = np.rint(np.clip((samples - low) * (255 / (high - low)), 0, 255))
        assert np.abs(stretch(samples, "here") - expected).max() <= 1 and (stretch(samples, "here")[:STRIP] == pixel).all()


def test_nothing_but_missing_data_is_black() -> None:
    assert (stretch(np.full((H, W), np.nan, np.float32), "here") == 0).all()


def encode(samples: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(samples).save(stream, "tiff", **options)
    return stream.getvalue()


def test_gdals_tag_names_the_value_without_data(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="samtrain")
    pixels = decode_image(encode(with_strip(0.5), tiffinfo={42113: "0.5"}), W, H, "tagged")
    assert np.array_equal(pixels[STRIP:, :, 0], stretch(RAMP[STRIP:], "here"))
    assert "tagged: 10.0 % of its samples hold no data and become black." in caplog.text


SAMPLES = {
    "float": with_strip(-9999),
    "double range": with_strip(float(np.finfo(np.float32).min)),
    "int32": with_strip(-9999, np.int32),
    "uint16": (RAMP * 100).astype(np.uint16),
    "uint16 tagged": with_strip(65535, np.uint16),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_prepared_image_equals_the_file_read_as_it_is(tmp_path: Path, kind: str) -> None:
    data = encode(SAMPLES[kind], tiffinfo={42113: "65535"} if "tagged" in kind else {})
    mask = np.zeros((H, W), bool)
    mask[10:20, 10:20] = True
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "p.tif").write_bytes(data)
    (tmp_path / "set" / "p.json").write_text(json.dumps({"annotations": [{"segmentation": encode_mask(mask)}]}))
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"), val=0, test=0))
    record = read_record(index_tar(next(folder.glob("pool/*.tar"))), 0)
    assert np.array_equal(decode_image(record.image_bytes, W, H, "p"), decode_image(data, W, H, "p"))


def test_an_image_of_one_level_is_said(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.fromarray(np.full((H, W), 700, np.uint16)).save(tmp_path / "set" / "p.tif")
    content = {"annotations": [{"segmentation": encode_mask(RAMP > 100)}]}
    (tmp_path / "set" / "p.json").write_text(json.dumps(content))
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "set"), val=0, test=0))
    noticed = json.loads((folder / "prepare.json").read_text())["noticed"]
    assert noticed == {"the image has next to no grey levels": {"count": 1, "examples": ["p.tif: 1 of 256"]}}
