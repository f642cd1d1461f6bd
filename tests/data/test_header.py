"""The size of an image without decoding it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtrain.data import header
from samtrain.data.decode import decode_shown
from samtrain.data.header import shown_size

PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def save(path: Path, orientation: int | None = None, **more: object) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif, **more)  # type: ignore[arg-type]
    return path


def refuse(*_: object) -> None:
    raise AssertionError("this file needs no decoding")


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_the_size_is_that_of_the_decoded_image(tmp_path: Path, kind: str, orientation: int | None) -> None:
    path = save(tmp_path / f"image.{kind}", orientation)
    assert shown_size(path) == decode_shown(path.read_bytes(), "image").shape[:2]


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_whole_files_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(header, "decode_shown", refuse)
    Image.fromarray(PIXELS).save(tmp_path / f"image.{kind}")
    assert shown_size(tmp_path / f"image.{kind}") == (20, 30)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_file_that_is_cut_short_is_refused_where_decoding_refuses_it(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / f"image.{kind}")
    data = path.read_bytes()
    refused = 0
    for kept in (0, 20, len(data) // 2, len(data) - 40, len(data) - 3, len(data) - 1):
        path.write_bytes(data[:kept])
        try:
            expected = decode_shown(data[:kept], str(path)).shape[:2]
        except ValueError as error:
            refused += 1
            with pytest.raises(ValueError) as found:
                shown_size(path)
            assert str(found.value) == str(error)
        else:
            assert shown_size(path) == expected
    assert refused >= 3
