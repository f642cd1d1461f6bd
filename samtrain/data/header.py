"""Reads the size of an image without decoding it, where its file says enough."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from samtrain.data.decode import EXIF_ORIENTATION, UNREADABLE, decode_shown
from samtrain.data.opening import open_image

SIDEWAYS = (5, 6, 7, 8)  # EXIF's orientations that swap width and height
END_OF_JPEG = b"\xff\xd9"
# chunks of a PNG that may turn it (EXIF, also as text or XMP) or animate it
TELLING = {b"eXIf", b"iTXt", b"tEXt", b"zTXt", b"acTL"}


def shown_size(path: Path) -> tuple[int, int]:
    """Returns the (H, W) of an image as a viewer shows it.

    A JPEG or PNG that is there to its end is not decoded, which takes a hundredth of the time. Any other file is: raises
    ValueError as `decode_shown` does.
    """
    found = _size_in_header(path)
    return decode_shown(path.read_bytes(), str(path)).shape[:2] if found is None else found


def _size_in_header(path: Path) -> tuple[int, int] | None:
    try:
        with open_image(path) as image:
            (width, height), kind = image.size, image.format
            turned = kind == "JPEG" and image.getexif().get(EXIF_ORIENTATION, 1) in SIDEWAYS
    except UNREADABLE:
        return None  # decoding says why
    complete = kind == "JPEG" and _ends_as_jpeg(path) or kind == "PNG" and _is_plain_png(path)
    if not complete:
        return None
    return (width, height) if turned else (height, width)


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 64, 0))
        return file.read().rstrip(b"\0").endswith(END_OF_JPEG)


def _is_plain_png(path: Path) -> bool:
    """Returns whether a PNG ends with its last chunk and has none that turns or animates it."""
    last = b""
    for last in _chunks(path):
        if last in TELLING:
            return False
    return last == b"IEND"


def _chunks(path: Path) -> Iterator[bytes]:
    """Yields the kinds of the chunks that are there as a whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            end = file.tell() + int.from_bytes(head[:4], "big") + 4
            if end > size:
                return
            yield head[4:]
            file.seek(end)
