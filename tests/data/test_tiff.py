"""TIFFs that PIL does not know or misreads are read by tifffile, or refused with the extra to install."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from samtrain.data.decode import decode_image, decode_samples
from samtrain.data.tiff import num_pages, read_pages

tifffile = pytest.importorskip("tifffile")
H, W = 12, 17
COLOURS = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
DEEP = COLOURS * np.uint16(9)
GREY = COLOURS[..., 0]
IN_PLANES = {"planarconfig": "separate"}


def encode(samples: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, samples, **options)
    return stream.getvalue()


OTHER_TIFFS = {
    "half": (GREY.astype(np.float16), GREY, {}),
    "double": (GREY.astype(np.float64), GREY, {}),
    "int64": (GREY.astype(np.int64), GREY, {}),
    "int8": (GREY.view(np.int8), GREY.view(np.int8), {}),
    "uint32": (GREY * np.uint32(16_000_000), GREY * np.uint32(16_000_000), {}),
    "float RGB": (COLOURS.astype(np.float32), COLOURS, {"photometric": "rgb"}),
    "RGB and two bands": (np.dstack([COLOURS, GREY, GREY]).astype(np.float32), COLOURS, {"photometric": "rgb"}),
    "8 bits in planes": (np.moveaxis(COLOURS, 2, 0), COLOURS, {"photometric": "minisblack", **IN_PLANES}),
    "16 bits in planes": (np.moveaxis(DEEP, 2, 0), DEEP, {"photometric": "rgb", **IN_PLANES}),
    "big endian": (GREY.astype(">f8"), GREY, {"byteorder": ">"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_TIFFS)
def test_the_samples_are_those_that_were_saved(kind: str) -> None:
    saved, expected, options = OTHER_TIFFS[kind]
    samples = decode_samples(encode(saved, **options), W, H, "here")
    assert np.array_equal(samples, expected)


def test_the_extra_is_named_where_tifffile_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"here: .*1 band of 64-bit floats.*'samtrain\[tiff\]'"):
        decode_image(encode(GREY.astype(np.float64)), W, H, "here")
    with pytest.raises(ValueError, match="3 bands of 16-bit"):
        decode_image(encode(np.moveaxis(DEEP, 2, 0), photometric="rgb", **IN_PLANES), W, H, "here")


def test_bands_without_names_are_refused() -> None:
    bands = np.dstack([COLOURS, COLOURS])[..., :5]
    with pytest.raises(ValueError, match="here: .*5 bands and does not say which are red"):
        decode_image(encode(bands, photometric="minisblack", planarconfig="contig"), W, H, "here")


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"truncate": True}])
def test_a_stack_is_counted_and_refused_as_an_image(options: dict) -> None:
    data = encode(np.stack([GREY] * 4), photometric="minisblack", **options)
    with Image.open(io.BytesIO(data)) as image:
        assert num_pages(image) == 4
    assert len(read_pages(data)) == 4
    with pytest.raises(ValueError, match="here: .*stack of 4 pages"):
        decode_image(data, W, H, "here")


def test_smaller_versions_of_an_image_are_no_pages() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(GREY)
        writer.write(GREY[::2, ::2], subfiletype=1)
    with Image.open(io.BytesIO(stream.getvalue())) as image:
        assert image.n_frames == 2 and num_pages(image) == 1
    assert (decode_image(stream.getvalue(), W, H, "here") == GREY[..., None]).all()
