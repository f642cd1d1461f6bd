"""Reads images defensively and cuts them into tiles, so that an image of any size can be looked at with bounded memory."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from samtrain.annotator.errors import Refused
from samtrain.annotator.sources import read_source
from samtrain.annotator.store import ImageRow
from samtrain.data.decode import decode_image, decode_shown

TILE = 512  # pixels of a tile's side: a screen shows about a dozen of them
QUALITY = 92  # of JPEG tiles; at 4:4:4, so that edges keep their colours
TILE_CACHE_BYTES = 64 << 20
STRIP = 1024  # rows halved together, an even number
V = TypeVar("V")


class ByteCache(Generic[V]):
    """Keeps values up to a number of bytes, the last used ones; each value is made once, however many threads ask for it.

    The newest value is kept even if it is larger than the limit.
    """

    def __init__(self, limit: int, size_of: Callable[[V], int]) -> None:
        self.limit, self.size_of, self.size = limit, size_of, 0
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._made: dict[Hashable, Future[V]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Returns the value of a key, made by `make()` if it is not kept; what `make` raises is raised to all who wait."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            future = self._made.get(key)
            mine = future is None
            if future is None:
                future = self._made[key] = Future()
        if not mine:
            return future.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._made[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._made[key]
            self._keep(key, value)
        future.set_result(value)
        return value

    def _keep(self, key: Hashable, value: V) -> None:
        self._kept[key] = value
        self.size += self.size_of(value)
        while self.size > self.limit and len(self._kept) > 1:
            self.size -= self.size_of(self._kept.popitem(last=False)[1])

    def __len__(self) -> int:
        return len(self._kept)


class Images:
    """Decodes the images of the store and keeps the last used ones, with their smaller versions.

    Level 0 is the image, and each further level has half its sides, up to the first that fits into one tile.

    cache_bytes: of decoded images that are kept in memory
    """

    def __init__(self, cache_bytes: int) -> None:
        self._levels: ByteCache[np.ndarray] = ByteCache(cache_bytes, lambda image: image.nbytes)
        self._tiles: ByteCache[bytes] = ByteCache(TILE_CACHE_BYTES, len)

    def pixels(self, image: ImageRow, level: int = 0) -> np.ndarray:
        """Returns (H, W, 3) uint8 RGB at a level; raises Refused with the reason if the image cannot be read."""
        if level == 0:
            return self._levels.get((image.id, 0), lambda: read_pixels(image))
        return self._levels.get((image.id, level), lambda: _half(self.pixels(image, level - 1)))

    def tile(self, image: ImageRow, level: int, column: int, row: int) -> bytes:
        """Returns a tile as JPEG, smaller at the right and lower edge; raises Refused if there is none with these numbers."""
        if not 0 <= level < levels(image.size):
            raise Refused(404, f"image {image.id} has the levels 0 to {levels(image.size) - 1}")
        height, width = size_at(image.size, level)
        if not (0 <= column * TILE < width and 0 <= row * TILE < height):
            raise Refused(404, f"level {level} of image {image.id} has {width} x {height} pixels, and no tile there")

        def make() -> bytes:
            x, y = column * TILE, row * TILE
            return to_jpeg(self.pixels(image, level)[y : y + TILE, x : x + TILE])

        return self._tiles.get((image.id, level, column, row), make)

    def whole(self, image: ImageRow, max_side: int | None) -> np.ndarray:
        """Returns the image, with its longest side at most `max_side`."""
        if max_side is None or max(image.size) <= max_side:
            return self.pixels(image)
        level = 0
        while max(size_at(image.size, level + 1)) >= max_side and level + 1 < levels(image.size):
            level += 1
        found = Image.fromarray(self.pixels(image, level))
        found.thumbnail((max_side, max_side), Image.Resampling.BOX)
        return np.asarray(found)


def levels(size: tuple[int, int]) -> int:
    """Returns the number of levels of an image of `size` (H, W)."""
    count = 1
    while max(size_at(size, count - 1)) > TILE:
        count += 1
    return count


def size_at(size: tuple[int, int], level: int) -> tuple[int, int]:
    """Returns (H, W) at a level: half of the level before, rounded up."""
    height, width = size
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def to_jpeg(pixels: np.ndarray) -> bytes:
    """Returns (H, W, 3) uint8 as the bytes of a JPEG."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return stream.getvalue()


def to_png(pixels: np.ndarray) -> bytes:
    """Returns (H, W, 3) uint8 as the bytes of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def read_pixels(image: ImageRow) -> np.ndarray:
    """Decodes an image; what a client is told names the image, not its place on the disk."""
    try:
        found = read_source(image.source)
        if found.size is None:
            pixels = decode_shown(found.data, image.name)
        else:
            pixels = decode_image(found.data, *found.size, image.name)
    except MemoryError as error:
        raise Refused(503, f"{image.name} does not fit into the memory: set max_image_pixels lower, or cut it up") from error
    except (FileNotFoundError, IndexError) as error:
        raise Refused(404, f"the file of {image.name} is not there any more: put it back where it was") from error
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Refused(422, words.replace(image.source.rpartition("#")[0] or image.source, image.name)) from error
    if pixels.shape[:2] != image.size:
        raise Refused(
            422,
            f"{image.name} has {pixels.shape[1]} x {pixels.shape[0]} pixels, but had {image.width} x {image.height} when it "
            "was added: put the old file back, or add the new one under another name",
        )
    return pixels


def _half(pixels: np.ndarray) -> np.ndarray:
    """Returns the image with half its sides, each pixel the mean of four; some rows at a time, because PIL copies them."""
    strips = [pixels[y : y + STRIP] for y in range(0, pixels.shape[0], STRIP)]
    return np.concatenate([np.asarray(Image.fromarray(strip).reduce(2)) for strip in strips])
