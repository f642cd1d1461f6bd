"""Mask files are read page by page, with the values as they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samtrain.data.prepare.mask_files import Refused
from samtrain.data.prepare.mask_reader import read_pages

tifffile = pytest.importorskip("tifffile")
H, W = 20, 30
LABELS = np.zeros((H, W), np.uint8)
LABELS[2:9, 3:11], LABELS[11:18, 5:25] = 1, 3
MASKS = np.stack([LABELS == 1, LABELS == 3])


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"photometric": "minisblack"}, {"truncate": True}])
def test_bool_tiffs_keep_their_pixels_on_every_page(tmp_path: Path, options: dict) -> None:
    """tifffile writes bool as one bit with "white is zero", which PIL inverts for display."""
    tifffile.imwrite(tmp_path / "m.tif", MASKS, **options)
    assert np.array_equal(read_pages(tmp_path / "m.tif", labels=True), MASKS)


@pytest.mark.parametrize("bits", [1, 8])
def test_white_is_zero_does_not_change_the_values(tmp_path: Path, bits: int) -> None:
    values = LABELS if bits == 8 else MASKS[0]
    tifffile.imwrite(tmp_path / "m.tif", values, photometric="miniswhite")
    assert np.array_equal(read_pages(tmp_path / "m.tif", labels=True)[0], values)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int64", "uint64", "float32", "float64", "float16"])
def test_tiffs_of_every_type(tmp_path: Path, dtype: str) -> None:
    values = LABELS.astype(dtype)
    if dtype in ("int8", "int16", "int64"):
        values -= 1
    if dtype in ("uint32", "uint64"):
        values *= 1_400_000_000  # above what int32 holds
    tifffile.imwrite(tmp_path / "m.tif", values)
    assert np.array_equal(read_pages(tmp_path / "m.tif", labels=True)[0], values)


@pytest.mark.parametrize("depth", [2, 4])
def test_pngs_of_few_bits_are_not_scaled(tmp_path: Path, depth: int) -> None:
    Image.fromarray(LABELS).save(tmp_path / "m.png", bits=depth)
    (palette := Image.fromarray(LABELS).convert("P")).save(tmp_path / "p.png", bits=depth)
    assert palette.mode == "P"
    for name in ("m.png", "p.png"):
        assert np.array_equal(read_pages(tmp_path / name, labels=True)[0], LABELS)


ARRAYS: dict[str, tuple[np.ndarray, Any]] = {
    "pages first": (MASKS, MASKS),
    "one page": (LABELS[None], LABELS[None]),
    "one channel": (LABELS[..., None], LABELS[None]),
    "one row": (LABELS[3:4], LABELS[None, 3:4]),
    "grey as colour": (np.dstack([LABELS] * 3), LABELS[None]),
    "floats": (LABELS.astype(np.float64), LABELS[None]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(tmp_path: Path, kind: str) -> None:
    values, expected = ARRAYS[kind]
    np.save(tmp_path / "m.npy", values)
    assert np.array_equal(read_pages(tmp_path / "m.npy", labels=True), expected)


def test_each_colour_is_a_number_and_alpha_is_read_if_it_alone_varies(tmp_path: Path) -> None:
    colours = np.zeros((H, W, 3), np.uint8)
    colours[MASKS[0]], colours[MASKS[1]] = (255, 0, 1), (9, 9, 0)
    alpha = np.full((H, W, 1), 255, np.uint8)
    Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / "c.png")
    numbers = read_pages(tmp_path / "c.png", labels=True)[0]
    assert np.array_equal(numbers, np.where(MASKS[0], 0xFF0001, np.where(MASKS[1], 0x090900, 0)))
    assert np.array_equal(read_pages(tmp_path / "c.png", labels=False)[0], colours.max(2))
    Image.fromarray(np.dstack([np.full((H, W, 3), 255, np.uint8), LABELS])).save(tmp_path / "a.png")
    assert np.array_equal(read_pages(tmp_path / "a.png", labels=True)[0], LABELS)


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


REFUSED = {
    "the label map is a JPEG": lambda path: Image.fromarray(LABELS).save(path, "jpeg"),
    "the mask file is a stack": lambda path: Image.fromarray(LABELS).save(
        path, "gif", save_all=True, append_images=[Image.fromarray(LABELS + 1)]
    ),
    "the mask file has several channels": lambda path: Image.fromarray(photo()).save(path, "png"),
    "the mask file holds fractions": lambda path: Image.fromarray(LABELS / np.float32(7)).save(path, "tiff"),
    "the mask file cannot be read": lambda path: path.write_bytes(b"no image"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_label_map_is_refused(tmp_path: Path, reason: str) -> None:
    REFUSED[reason](path := tmp_path / "m.png")
    with pytest.raises(Refused, match=reason):
        read_pages(path, labels=True)


def test_bands_of_a_tiff_are_not_dropped(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "m.tif", np.moveaxis(MASKS, 0, 2).astype(np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(Refused, match="several channels.*2 bands"):
        read_pages(tmp_path / "m.tif", labels=True)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_masks_in_the_bands_of_a_tiff_or_the_last_axis_of_an_array_are_not_dropped(tmp_path: Path, count: int) -> None:
    masks = np.stack([np.roll(MASKS[0], 3 * number, 1) for number in range(count)], axis=2)
    tifffile.imwrite(tmp_path / "m.tif", masks.astype(np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(Refused, match=f"several channels.*{count}"):
        read_pages(tmp_path / "m.tif", labels=False)
    if count <= 4:  # more would be pages of a small image
        np.save(tmp_path / "m.npy", masks)
        with pytest.raises(Refused, match=rf"several channels.*m.npy.*{count}\).*page"):
            read_pages(tmp_path / "m.npy", labels=False)
