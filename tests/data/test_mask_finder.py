"""Which masks belong to which image: each file to one image, and what belongs to none is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from samtrain.data.prepare.mask_files import MaskFinder, Refused
from samtrain.data.prepare.unread import unread_files


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(finder: MaskFinder) -> dict[str, list[str]]:
    return {name: [path.relative_to(finder.source).as_posix() for path in masks] for name, _, masks in finder.images()}


@pytest.mark.parametrize("masks", ["masks", "masks/{stem}.*"])
def test_no_image_receives_the_mask_of_another(tmp_path: Path, masks: str) -> None:
    """day2/p0.png once took masks/p0.png, which was that of day1/p0.png."""
    touch(tmp_path, "day1/p0.png", "day2/p0.png", "day1/p1.png", "masks/p0.png", "masks/p1.png")
    finder = MaskFinder(tmp_path, masks, several=False)
    pairs = {name: own for name, own in found(finder).items() if not name.startswith("masks")}
    assert pairs == {"day1/p0.png": [], "day1/p1.png": ["masks/p1.png"], "day2/p0.png": []}
    for day, other in (("day1", "day2"), ("day2", "day1")):
        with pytest.raises(Refused, match=f"fits several images: p0.png is also that of {other}/p0.png"):
            finder.check(tmp_path / day / "p0.png")
    finder.check(tmp_path / "day1/p1.png")


def test_a_whole_name_comes_before_a_shorter_one(tmp_path: Path) -> None:
    touch(tmp_path, "p0.png", "day2/p0.png", "masks/p0.png", "day1/p1.png", "day2/p1.png", "masks/day1/p1.png")
    touch(tmp_path, "images/q.png", "masks/q.npy")
    pairs = found(MaskFinder(tmp_path, "masks", several=False))
    assert pairs == {
        "p0.png": ["masks/p0.png"],
        "day2/p0.png": [],
        "day1/p1.png": ["masks/day1/p1.png"],
        "day2/p1.png": [],
        "images/q.png": ["masks/q.npy"],
    }


def test_two_images_of_one_stem_share_no_mask(tmp_path: Path) -> None:
    touch(tmp_path, "p.jpg", "p.tif", "m/p_1.png", "m/p_2.png", "q.jpg", "m/q/1.png", "m/1.png")
    pairs = found(MaskFinder(tmp_path, "m", several=True))
    assert pairs == {"p.jpg": [], "p.tif": [], "q.jpg": ["m/q/1.png"]}


def test_masks_without_an_image_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "p.jpg", "m/p.png", "m/r2.png", "m/r10.png")
    MaskFinder(tmp_path, "m", several=False).images()
    assert f"2 mask files belong to no image (data.masks), for example {tmp_path}/m/r2.png" in caplog.text


def test_files_that_nothing_reads_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.HEIC", "deep/c.heic", "deep/d.tar", ".e.jpg", ".git/x", ".git/y", "README", "f.json")
    assert unread_files(tmp_path, [tmp_path / "a.jpg"], {".json"}) == "2 .heic, 2 hidden, 1 without an extension, 1 .tar"
    assert unread_files(tmp_path / "deep", [tmp_path / "deep/c.heic", tmp_path / "deep/d.tar"]) == ""
