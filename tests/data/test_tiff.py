"""TIFFs that PIL does not know or misreads are read by tifffile, or refused with the extra to install."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from samtrain.data.channels import VARIABLE, choose_channels
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


BANDS = np.dstack([COLOURS, COLOURS + 1])[..., :5]
UNNAMED = {"photometric": "minisblack", "planarconfig": "contig"}


@pytest.fixture
def channels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)  # restored after the test
    monkeypatch.setenv(VARIABLE, "")
    return choose_channels


def test_bands_without_names_are_refused() -> None:
    with pytest.raises(ValueError, match="here: .*5 bands and does not say which are red.*set image_channels"):
        decode_image(encode(BANDS, **UNNAMED), W, H, "here")


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (BANDS, UNNAMED),
        (BANDS.astype(np.uint16) * 9, UNNAMED),
        (BANDS, {"photometric": "rgb", "planarconfig": "contig"}),
        (np.moveaxis(BANDS, 2, 0), {"photometric": "minisblack"}),
        (np.moveaxis(BANDS, 2, 0).astype(np.float32), {"photometric": "minisblack", "planarconfig": "separate"}),
        (np.moveaxis(BANDS, 2, 0), {"imagej": True, "metadata": {"axes": "CYX"}}),
        (np.moveaxis(BANDS, 2, 0), {"ome": True, "photometric": "minisblack", "metadata": {"axes": "CYX"}}),
    ],
)
def test_chosen_channels_are_taken_from_bands_and_pages(samples: np.ndarray, options: dict, channels) -> None:
    data = encode(samples, **options)
    bands = samples if samples.shape[2] == 5 else np.moveaxis(samples, 0, 2)
    channels([4, 1, 0])
    assert np.array_equal(decode_samples(data, W, H, "here"), bands[..., [4, 1, 0]])
    channels([3])
    assert np.array_equal(decode_samples(data, W, H, "here"), bands[..., 3])
    channels([5, 1, 0])
    with pytest.raises(ValueError, match="here: .*5 channels, numbered from 0 to 4, and image_channels is .5, 1, 0."):
        decode_samples(data, W, H, "here")


def test_images_of_one_channel_or_three_colours_are_read_as_they_are(channels, making) -> None:
    files = [encode(GREY), encode(COLOURS, photometric="rgb"), encode(GREY.astype(np.float64)), making.encode_png(COLOURS)]
    before = [decode_samples(data, W, H, "here") for data in files]
    channels([2, 1, 0])
    assert all(np.array_equal(decode_samples(data, W, H, "here"), old) for data, old in zip(files, before, strict=True))


@pytest.mark.parametrize("wrong", [[], [0, 1], [0, 1, 2, 3], [0, 1, -1]])
def test_channels_are_one_or_three(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="image_channels"):
        choose_channels(wrong)


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"truncate": True}])
def test_a_stack_is_counted_and_refused_as_an_image(options: dict) -> None:
    data = encode(np.stack([GREY] * 4), photometric="minisblack", **options)
    with Image.open(io.BytesIO(data)) as image:
        assert num_pages(image) == 4
    assert len(read_pages(data)) == 4
    with pytest.raises(ValueError, match="here: .*4 pages: save the one to use"):
        decode_image(data, W, H, "here")


def test_smaller_versions_of_an_image_are_no_pages() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(GREY)
        writer.write(GREY[::2, ::2], subfiletype=1)
    with Image.open(io.BytesIO(stream.getvalue())) as image:
        assert image.n_frames == 2 and num_pages(image) == 1
    assert (decode_image(stream.getvalue(), W, H, "here") == GREY[..., None]).all()
