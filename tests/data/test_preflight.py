from __future__ import annotations

import json

import numpy as np
import pytest

from samtrain.data.datasets import SamDataset
from samtrain.data.preflight import check_samples
from samtrain.data.shards import ShardWriter, safe_key
from samtrain.data.transforms import NativeCrop, ResizeLongestSide

SIZE = (64, 96)


@pytest.fixture
def findings(tmp_path, making):
    """Returns the findings about one image with these boxes as masks."""

    def find(boxes, *, image_size: int = 96, brightness: int = 128, levels: int = 12, size=SIZE, transform=None) -> str:
        masks = [making.rectangle(size, box) for box in boxes]
        with ShardWriter(tmp_path, "x") as writer:
            rows = brightness + np.arange(size[0]) % levels
            image = making.encode_png(np.broadcast_to(rows[:, None, None], (*size, 3)).astype(np.uint8))
            writer.write("sa_1", image, "png", making.annotate(masks, size))
        dataset = SamDataset([tmp_path], transform or ResizeLongestSide(image_size=image_size))
        return "\n".join(check_samples(dataset))

    return find


def test_a_valid_set_has_no_findings(findings):
    assert findings([(10, 10, 40, 40), (50, 20, 80, 50)]) == ""


def test_small_objects(findings):
    text = findings([(10, 10, 16, 16), (50, 20, 56, 26)], image_size=48)
    assert "median object has a side of 3.0 input pixels at model.image_size=48" in text and "data.frame=native" in text


def test_no_masks_and_masks_of_the_whole_image(findings):
    assert "1 of 1 images (for example sa_1) have no masks" in findings([])
    text = findings([(0, 0, 96, 64)])
    assert "masks over 90% of the image" in text and "all are too large" in text


def test_enlarged_padded_and_dark_images(findings):
    assert "are enlarged 4.0 times at the median" in findings([(10, 10, 40, 40)], image_size=384)
    text = findings([(10, 10, 40, 40)], transform=NativeCrop(image_size=256))
    assert "fill less than 25% of the input" in text
    assert "are very dark" in findings([(10, 10, 40, 40)], brightness=9)


def test_images_without_grey_levels(findings):
    assert "have fewer than 8 grey levels" in findings([(10, 10, 40, 40)], levels=1)


def test_records_that_cannot_be_read_are_reported(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"no"), ("a.json", b"no"), ("b.png", b"no"), ("b.json", b"no")])
    found = check_samples(SamDataset([path], ResizeLongestSide(image_size=32)))
    assert len(found) == 2
    assert all(text.startswith("cannot be read: ") and "its JSON cannot be parsed" in text for text in found)


def test_skipped_faults_are_counted(tmp_path, write_set, write_tar):
    (path,) = write_set(tmp_path)
    path.write_bytes(path.read_bytes()[:-10240])
    found = check_samples(SamDataset([path], ResizeLongestSide(image_size=32), on_error="skip"))
    assert any("1 faults in the shards were skipped" in text for text in found)


def test_nuclei_are_too_small_when_the_image_is_shrunk(tmp_path, shared_data):
    """A set that needs native crops is recognised."""
    with ShardWriter(tmp_path, "nuclei") as writer:
        for path in sorted((shared_data / "dsb2018-cc0" / "images").glob("*.json"))[:8]:
            image = path.with_suffix(".png").read_bytes()
            writer.write(safe_key(path.stem), image, "png", json.loads(path.read_text()))
    shrunk = check_samples(SamDataset([tmp_path], ResizeLongestSide(image_size=128)))
    native = check_samples(SamDataset([tmp_path], NativeCrop(image_size=128)))
    assert any("median object has a side" in text for text in shrunk)
    assert not any("median object has a side" in text for text in native)
