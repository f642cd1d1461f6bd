"""JPEGs decoded no larger than needed: nearly the same image, the same masks, and full size for all other files."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from samtrain.data.datasets import SamDataset
from samtrain.data.decode import StoredImage
from samtrain.data.transforms import LargeScaleJitter, NativeCrop, ResizeLongestSide


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 120 * np.sin(x / 30 + c) * np.cos(y / 23) for c in range(3)], axis=-1).astype(np.uint8)


def jpeg(image: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", quality=95, **options)
    return stream.getvalue()


@pytest.mark.parametrize(("scale", "reduction"), [(1.0, 1), (0.51, 1), (0.5, 2), (0.26, 2), (0.2, 4), (0.01, 8)])
def test_the_image_is_never_smaller_than_needed(scale: float, reduction: int) -> None:
    image, r = StoredImage(jpeg(smooth(301, 455)), 455, 301, "it").decode(scale)
    assert r == reduction
    assert image.shape == (-(-301 // r), -(-455 // r), 3)


@pytest.mark.parametrize("transform", [ResizeLongestSide(image_size=128), LargeScaleJitter(image_size=128, scale=(0.2, 1.0))])
def test_nearly_the_same_image_and_the_same_masks(transform, making) -> None:
    image = smooth(301, 455)
    data = jpeg(image)
    annotations = making.annotate([making.rectangle((301, 455), (40, 30, 300, 200))], (301, 455))["annotations"]
    stored = StoredImage(data, 455, 301, "it")
    for seed in range(5):
        whole = transform(stored.decode(1.0)[0], annotations, 4, np.random.default_rng(seed))
        reduced = transform(stored, annotations, 4, np.random.default_rng(seed))
        assert whole.masks.equal(reduced.masks) and whole.input_size == reduced.input_size
        assert (whole.image.float() - reduced.image.float()).abs().mean() < 2.0


def test_native_crops_keep_their_pixels(making) -> None:
    stored = StoredImage(jpeg(smooth(301, 455)), 455, 301, "it")
    crop = NativeCrop(image_size=64)
    whole = crop(stored.decode(1.0)[0], [], 4, np.random.default_rng(0))
    assert whole.image.equal(crop(stored, [], 4, np.random.default_rng(0)).image)


def test_other_files_are_decoded_at_full_size(making) -> None:
    image = smooth(64, 96)
    assert StoredImage(making.encode_png(image), 96, 64, "it").decode(0.1)[1] == 1
    turned = Image.Exif()
    turned[0x0112] = 6
    data = jpeg(image, exif=turned)
    assert StoredImage(data, 64, 96, "it").decode(0.1)[0].shape == (96, 64, 3)  # its JSON is that of the turned image


def test_a_broken_image_is_named_once(tmp_path, write_tar, making) -> None:
    annotation = making.annotate([making.rectangle((301, 455), (40, 30, 300, 200))], (301, 455))
    cut = jpeg(smooth(301, 455))[:2000]
    path = write_tar(tmp_path / "a.tar", [("one.jpg", cut), ("one.json", json.dumps(annotation).encode())])
    dataset = SamDataset([str(path)], ResizeLongestSide(image_size=64), reduced_jpeg=True)
    with pytest.raises(ValueError, match=r"record one: its image cannot be read") as raised:
        dataset[0]
    assert str(raised.value).count("record one") == 1


def test_reduced_images_are_not_cached(tmp_path, write_set) -> None:
    with pytest.raises(ValueError, match=r"loader\.reduced_jpeg .* loader\.cache_images"):
        SamDataset([str(tmp_path)], ResizeLongestSide(image_size=32), cache_images=True, reduced_jpeg=True)
