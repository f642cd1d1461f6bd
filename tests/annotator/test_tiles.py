"""Tiles and the memory behind them: what is cut, what is kept, and what is made only once."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="needs the extra annotate")

from PIL import Image  # noqa: E402
from serving import write_images  # noqa: E402

from samtrain.annotator import tiles  # noqa: E402
from samtrain.annotator.errors import Refused  # noqa: E402
from samtrain.annotator.store import ImageRow, open_store  # noqa: E402
from samtrain.annotator.tiles import ByteCache, Images, levels, size_at  # noqa: E402


def row(folder: Path, size: tuple[int, int]) -> ImageRow:
    with open_store(f"sqlite:///{folder / 'a.db'}") as store:
        return store.add_images(write_images(folder / "images", 1, size))[0]


@pytest.mark.parametrize("size", [(1, 1), (512, 512), (513, 7), (1025, 2049), (10_000, 10_000)])
def test_the_last_level_fits_into_a_tile(size: tuple[int, int]) -> None:
    count = levels(size)
    assert max(size_at(size, count - 1)) <= tiles.TILE
    assert count == 1 or max(size_at(size, count - 2)) > tiles.TILE
    assert min(size_at(size, count - 1)) >= 1


def test_tiles_cover_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 16)
    monkeypatch.setattr(tiles, "to_jpeg", lambda pixels: pixels.tobytes() + bytes(pixels.shape[:2]))
    image, images = row(tmp_path, (37, 50)), Images(10**8)
    for level in range(levels((37, 50))):
        height, width = size_at((37, 50), level)
        rebuilt = np.zeros((height, width, 3), np.uint8)
        for top in range(0, height, 16):
            for left in range(0, width, 16):
                data = images.tile(image, level, left // 16, top // 16)
                part = np.frombuffer(data[:-2], np.uint8).reshape(data[-2], data[-1], 3)
                rebuilt[top : top + data[-2], left : left + data[-1]] = part
        assert np.array_equal(rebuilt, images.pixels(image, level))
    half = np.asarray(Image.fromarray(images.pixels(image)).reduce(2))
    assert np.array_equal(images.pixels(image, 1), half)
    with pytest.raises(Refused, match="no tile there"):
        images.tile(image, 0, 4, 0)


def test_halving_in_strips_equals_halving_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "STRIP", 4)
    image, images = row(tmp_path, (31, 9)), Images(10**8)
    assert np.array_equal(images.pixels(image, 1), np.asarray(Image.fromarray(images.pixels(image)).reduce(2)))


def test_a_tile_is_a_jpeg_close_to_its_pixels(tmp_path: Path) -> None:
    image, images = row(tmp_path, (40, 60)), Images(10**8)
    smooth = np.asarray(Image.fromarray(images.pixels(image)).resize((6, 4)).resize((60, 40), Image.Resampling.BILINEAR))
    shown = np.asarray(Image.open(io.BytesIO(tiles.to_jpeg(smooth))))
    assert np.abs(shown.astype(int) - smooth).mean() < 3


def test_memory_is_bounded_but_the_newest_stays() -> None:
    cache: ByteCache[bytes] = ByteCache(10, len)
    for key in "abc":
        cache.get(key, lambda: bytes(4))
    assert len(cache) == 2 and cache.size == 8
    assert cache.get("b", lambda: b"other") == bytes(4)
    cache.get("d", lambda: bytes(4))
    assert cache.get("b", lambda: b"other") == bytes(4)  # it was used after c
    assert cache.get("large", lambda: bytes(99)) == bytes(99) and len(cache) == 1


def test_a_value_is_made_once_for_all_who_wait() -> None:
    cache: ByteCache[bytes] = ByteCache(100, len)
    made, begin, found = [], threading.Event(), []

    def make() -> bytes:
        begin.wait(20)
        made.append(1)
        return b"x"

    threads = [threading.Thread(target=lambda: found.append(cache.get("a", make))) for _ in range(5)]
    for thread in threads:
        thread.start()
    begin.set()
    for thread in threads:
        thread.join(20)
    assert found == [b"x"] * 5 and made == [1]


def test_a_failure_is_raised_to_all_and_not_kept() -> None:
    cache: ByteCache[bytes] = ByteCache(100, len)

    def fail() -> bytes:
        raise Refused(422, "broken")

    for _ in range(2):
        with pytest.raises(Refused):
            cache.get("a", fail)
    assert cache.get("a", lambda: b"mended") == b"mended"


def test_a_file_that_was_replaced_by_one_of_another_size_is_refused(tmp_path: Path) -> None:
    image = row(tmp_path, (40, 60))
    Image.new("RGB", (30, 30)).save(image.source)
    with pytest.raises(Refused, match="has 30 x 30 pixels, but had 60 x 40 when it was added"):
        Images(10**8).pixels(image)
