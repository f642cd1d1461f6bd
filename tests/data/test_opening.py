"""Images over the limit are refused before they are decoded, and reasons are the same in every run."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from samtrain.data.decode import decode_image, decode_shown
from samtrain.data.opening import MAX_PIXELS, VARIABLE, TooLarge, limit_pixels, open_image


def encode(image: Image.Image, kind: str = "png", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(MAX_PIXELS))


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_a_large_image_is_refused_with_the_key_and_the_value(kind: str) -> None:
    data = encode(Image.new("L", (50, 40), 9), kind)
    limit_pixels(1999)
    with pytest.raises(TooLarge, match="here: .*50 x 40 pixels, and max_image_pixels is 1999: set max_image_pixels=2000"):
        decode_shown(data, "here")
    limit_pixels(2000)
    assert decode_image(data, 50, 40, "here").shape == (40, 50, 3)


def test_the_limit_is_above_pils_if_it_is_set_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_image(encode(Image.new("L", (50, 40)))) as image:
            assert image.size == (50, 40)
    assert Image.MAX_IMAGE_PIXELS == 100


REASONS = {
    b"": "the file is empty",
    b"version https://git-lfs.github.com/spec/v1": "git lfs pull",
    b"\0\0\0\x18ftypheic": "HEIC or AVIF.*save it as JPEG or PNG",
    b"no image": "PIL does not know this format",
}


@pytest.mark.parametrize("data", REASONS)
def test_the_reason_is_said_without_addresses(data: bytes) -> None:
    with pytest.raises(ValueError, match=f"here: .*{REASONS[data]}") as raised:
        decode_shown(data, "here")
    assert " at 0x" not in str(raised.value)


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_an_animation_is_refused(kind: str) -> None:
    frames = [Image.fromarray(np.full((9, 9), value, np.uint8)) for value in (10, 90)]
    with pytest.raises(ValueError, match="here: .*2 frames: save the one to use"):
        decode_shown(encode(frames[0], kind, save_all=True, append_images=frames[1:]), "here")
