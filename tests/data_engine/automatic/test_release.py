"""The form in which images are given away."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from samtrain.data_engine.automatic.release import CascadeDetector, ReleaseForm
from tests.data_engine.automatic.images import shapes

FACES = ["haarcascade_frontalface_default.xml"]


def nothing(image: np.ndarray) -> np.ndarray:
    return np.zeros((0, 4))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_shrunk_and_never_enlarged() -> None:
    form = ReleaseForm(short_side=30, quality=95, detectors={})
    assert form.size((60, 80)) == (30, 40) and form.size((80, 60)) == (40, 30)
    assert form.size((30, 500)) == (30, 500) and form.size((20, 20)) == (20, 20)
    assert ReleaseForm(short_side=None, quality=95, detectors={}).size((60, 80)) == (60, 80)
    data, counts = form.jpeg(shapes(0))
    assert decoded(data).shape == (30, 40, 3) and counts == {}
    assert not Image.open(io.BytesIO(data)).getexif()


def test_what_a_detector_finds_is_blurred_and_counted_and_the_rest_is_not() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    box = np.array([[40.0, 30.0, 70.0, 60.0]])
    form = ReleaseForm(short_side=None, quality=100, detectors={"faces": lambda image: box, "plates": nothing}, margin=0.2)
    data, counts = form.jpeg(photo)
    plain, _ = ReleaseForm(short_side=None, quality=100, detectors={}).jpeg(photo)
    blurred, same = decoded(data).astype(float), decoded(plain).astype(float)
    assert counts == {"faces": 1, "plates": 0}
    assert blurred[36:54, 46:64].std() < 0.15 * same[36:54, 46:64].std()
    assert blurred[26:64, 36:74].std() < 0.5 * same[26:64, 36:74].std()  # the margin too
    outside = np.ones((100, 120), bool)
    outside[8:82, 18:92] = False  # blocks of a JPEG that the blurred part touches, and colours beside them
    assert np.abs(blurred - same)[outside].max() == 0


def test_boxes_at_the_edge() -> None:
    boxes = np.array([[-20.0, -5, 10, 10], [70, 50, 200, 90]])
    form = ReleaseForm(short_side=None, quality=90, detectors={"any": lambda image: boxes})
    data, counts = form.jpeg(shapes(1))
    assert decoded(data).shape == (60, 80, 3) and counts == {"any": 2}


def test_opencvs_cascade_finds_a_face() -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install 'samtrain[release]'")
    photos = pytest.importorskip("skimage.data", reason="needs images: pip install scikit-image")
    astronaut = photos.astronaut()
    boxes = CascadeDetector(FACES)(astronaut)
    face = (220, 110)  # x, y of her nose
    assert any(x0 < face[0] < x1 and y0 < face[1] < y1 for x0, y0, x1, y1 in boxes)
    # and, mirrored, the same place of the mirrored image
    mirrored = CascadeDetector(FACES, mirrored=True)(np.ascontiguousarray(astronaut[:, ::-1]))
    assert any(x0 < 512 - face[0] < x1 and y0 < face[1] < y1 for x0, y0, x1, y1 in mirrored)


def test_a_cascade_that_there_is_not() -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install 'samtrain[release]'")
    with pytest.raises(ValueError, match="nobody.xml"):
        CascadeDetector(["nobody.xml"])


def test_without_opencv_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ValueError, match=r"samtrain\[release\]"):
        CascadeDetector(FACES)
