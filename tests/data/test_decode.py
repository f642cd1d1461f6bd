from __future__ import annotations

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from samtrain.data.decode import StoredImage, decode_image, decode_samples, decode_shown

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "png", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def encode_16_bit_png(samples: np.ndarray) -> bytes:
    """Returns (H, W, C) uint16 samples as PNG, which PIL cannot write for colours."""
    height, width, channels = samples.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def decode(data: bytes, size: tuple[int, int] = (6, 9)) -> np.ndarray:
    image = decode_image(data, size[1], size[0], "here")
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    return image


def test_rgb_is_kept():
    assert (decode(encode(Image.fromarray(RGB))) == RGB).all()


def test_grey_and_black_and_white():
    grey = Image.fromarray(RGB[..., 0])
    assert (decode(encode(grey)) == RGB[..., :1]).all()
    assert set(np.unique(decode(encode(grey.convert("1"))))) == {0, 255}


def test_alpha_is_dropped_and_colours_stay():
    alpha = np.dstack([RGB, np.full((6, 9), 7, dtype=np.uint8)])
    assert (decode(encode(Image.fromarray(alpha))) == RGB).all()
    grey_alpha = Image.fromarray(RGB[..., :2], "LA")
    assert (decode(encode(grey_alpha)) == RGB[..., :1]).all()


@pytest.mark.filterwarnings("error")
def test_palette_with_and_without_transparency():
    palette = Image.fromarray(RGB).quantize(8)
    expected = np.asarray(palette.convert("RGB"))
    assert (decode(encode(palette)) == expected).all()
    assert (decode(encode(palette, transparency=bytes([0, 128]))) == expected).all()


def test_cmyk_jpeg_has_its_colours():
    red = Image.new("RGB", (9, 6), (200, 30, 40)).convert("CMYK")
    image = decode(encode(red, "jpeg", quality=95))
    assert np.abs(image.astype(int) - (200, 30, 40)).max() < 12


def test_16_bit_grey_is_stretched_and_logged(caplog):
    caplog.set_level(logging.INFO, logger="samtrain")
    ramp = np.linspace(1000, 1500, 54).astype(np.uint16).reshape(6, 9)
    image = decode(encode(Image.fromarray(ramp)))
    assert image.min() == 0 and image.max() == 255
    assert (np.diff(image[..., 0].ravel().astype(int)) >= 0).all() and len(np.unique(image)) > 45
    assert "here has more than 8 bits per sample: [1000" in caplog.text


def test_16_bit_tiff_and_float_tiff():
    ramp = np.linspace(1000, 1500, 54).reshape(6, 9)
    expected = decode(encode(Image.fromarray(ramp.astype(np.uint16))))
    for photo in (ramp.astype(np.uint16), ramp.astype(np.int32), ramp.astype(np.float32)):
        image = decode(encode(Image.fromarray(photo), "tiff"))
        assert np.abs(image.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("largest", [54, 65536])
def test_16_bit_colour_keeps_its_low_bits(channels, largest):
    """Equal samples give equal images, with and without alpha, in grey, and if all values are below one 8-bit step."""
    grey = np.random.default_rng(1).permutation(np.linspace(0, largest - 1, 54).astype(np.uint16)).reshape(6, 9)
    samples = np.repeat(grey[..., None], channels, axis=2)
    if channels in (2, 4):
        samples[..., -1] = 300
    expected = decode(encode(Image.fromarray(grey)))
    assert len(np.unique(expected)) > 45
    image = decode(encode_16_bit_png(samples))
    assert np.abs(image.astype(int) - expected).max() <= 1, "the percentiles of repeated samples are not quite the same"


@pytest.mark.parametrize("kind", ["png", "<", ">"])
def test_16_bit_colours_keep_their_hues(making, kind):
    samples = np.random.default_rng(2).integers(1000, 9000, (6, 9, 3)).astype(np.uint16)
    samples[..., 1] = 1000
    data = encode_16_bit_png(samples) if kind == "png" else making.encode_16_bit_tiff(samples, kind)
    assert (decode_samples(data, 9, 6, "here") == samples).all()
    image = decode(data).astype(float)
    assert (image[..., 1] == 0).all()
    assert np.abs(image - np.clip((samples - 1000.0) * 255 / 8000, 0, 255)).max() < 5


def test_constant_16_bit_image():
    assert (decode(encode(Image.fromarray(np.full((6, 9), 900, dtype=np.uint16)))) == 0).all()


METHODS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM"}
METHODS |= {5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}


def encode_turned(kind: str, orientation: int) -> tuple[bytes, np.ndarray]:
    """Returns an image with this EXIF orientation, and its pixels as shown."""
    image, exif = Image.fromarray(RGB), Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif), np.asarray(image.transpose(Image.Transpose[METHODS[orientation]]))


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_exif_turns_if_that_gives_the_size_of_the_json(kind, orientation):
    """PIL itself turns a TIFF, whatever the JSON says."""
    data, shown = encode_turned(kind, orientation)
    assert (decode(data) == RGB).all(), "the JSON describes the image as stored"
    assert (decode(data, (9, 6)) == shown).all(), "the JSON describes the image as shown"
    assert (decode_shown(data, "here") == shown).all()


def test_exif_turns_16_bit_images_too():
    ramp = np.arange(54, dtype=np.uint16).reshape(6, 9)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(ramp), exif=exif)
    assert (decode(data, (9, 6)) == np.rot90(decode(data), -1)).all()


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_exif_that_does_not_change_the_size_is_followed(kind, orientation):
    """The size cannot tell, so records are read as viewers and predictions show the image."""
    data, shown = encode_turned(kind, orientation)
    assert (shown != RGB).any() and (decode(data) == shown).all()
    assert (decode_shown(data, "here") == shown).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_square_images_are_read_as_they_are_shown(orientation):
    """Evaluation and embeddings of records then see the pixels that predictions see."""
    square, exif = Image.fromarray(RGB[:6, :6]), Image.Exif()
    exif[0x0112] = orientation
    data = encode(square, exif=exif)
    assert (decode(data, (6, 6)) == decode_shown(data, "here")).all()
    jpeg = encode(square.resize((64, 64)), "jpeg", exif=exif, quality=100, subsampling=0)
    full = Image.fromarray(decode_shown(jpeg, "here"))
    small, reduction = StoredImage(jpeg, 64, 64, "here").decode(0.5)
    expected = np.asarray(full.resize(small.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(small - expected).max() <= 12, (orientation, reduction)


def test_other_size_is_refused():
    with pytest.raises(ValueError, match="here: its image is 9 x 6 .*its JSON says 6 x 9: correct the JSON"):
        decode(encode(Image.fromarray(RGB)), (9, 6))


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_broken_images_name_the_record(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    header = data.replace(b"\0\0\0\rIHDR", b"\0\0\0\x01IHDR")  # of PNG; PIL says ValueError
    for broken in (b"", b"no image", data[: len(data) // 2], *([header] if header != data else [])):
        with pytest.raises(ValueError, match="here: its image cannot be read"):
            decode(broken, (64, 64))


def test_broken_16_bit_image_names_the_record():
    data = encode_16_bit_png(np.random.default_rng(0).integers(0, 65536, (64, 64, 3)).astype(np.uint16))
    with pytest.raises(ValueError, match="here: its image cannot be read"):
        decode(data[: len(data) // 2], (64, 64))
