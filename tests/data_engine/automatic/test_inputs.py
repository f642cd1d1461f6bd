"""What is taken for the input, in which order."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from samtrain.data_engine.automatic.inputs import digest_of, list_images
from tests.data_engine.automatic.images import as_jpeg, shapes, write_images


def test_a_folder_in_the_order_of_names(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", 12)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "x.PNG").write_bytes(b"any")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_bytes(b"any")
    names = [image.source_name for image in list_images(str(folder))]
    assert names == ["deeper/x.PNG", *(f"image_{i}.jpg" for i in range(12))]


def test_a_glob_and_a_list(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", 3)
    one, two = str(folder / "image_2.jpg"), str(folder / "image_[01].jpg")
    assert [p.source_name for p in list_images([one, two])] == ["image_2.jpg", "image_0.jpg", "image_1.jpg"]


def test_tars_with_and_without_jsons(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", 3)
    (folder / "image_0.json").write_text("{}")
    for name, files in (("a.tar", ["image_0.jpg", "image_0.json"]), ("b.tar", ["image_2.jpg", "image_1.jpg"])):
        with tarfile.open(tmp_path / name, "w") as tar:
            for file in files:
                tar.add(folder / file, arcname=f"./{file}")
    images = list_images(str(tmp_path / "*.tar"))
    assert [p.source_name for p in images] == ["image_0.jpg", "image_2.jpg", "image_1.jpg"]
    assert images[1].read() == as_jpeg(shapes(2))
    # a folder of nothing but tars
    (tmp_path / "tars").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "tars" / "a.tar")
    assert [p.source_name for p in list_images(str(tmp_path / "tars"))] == ["image_0.jpg"]


def test_tars_beside_an_image_are_read_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_images(tmp_path / "in", 2)
    with tarfile.open(folder / "more.tar", "w") as tar:
        tar.add(folder / "image_1.jpg", arcname="deep/b.jpg")
    (folder / "image_1.jpg").unlink()
    for name in ("phone.heic", "scan.HEIC", ".hidden.jpg", "image_0.json"):
        (folder / name).write_bytes(b"any")
    assert [image.source_name for image in list_images(str(folder))] == ["image_0.jpg", "deep/b.jpg"]
    assert "not read, because they are neither images nor tars: 2 .heic, 1 hidden." in caplog.text


@pytest.mark.parametrize("given", ["folder", "glob", "folders", "list", "tars"])
def test_equal_names_stay_apart(tmp_path: Path, given: str) -> None:
    folders = [write_images(tmp_path / "in" / day, 1) for day in ("day1", "day2")]
    if given == "tars":
        for folder in folders:
            with tarfile.open(tmp_path / "in" / f"{folder.name}.tar", "w") as tar:
                tar.add(folder / "image_0.jpg", arcname="image_0.jpg")
    sources = {
        "folder": str(tmp_path / "in"),
        "glob": str(tmp_path / "in" / "day*" / "*.jpg"),
        "folders": str(tmp_path / "in" / "day*"),
        "list": [str(folder) for folder in folders],
        "tars": str(tmp_path / "in" / "*.tar"),
    }
    names = [image.source_name for image in list_images(sources[given])]
    days = ("day1.tar", "day2.tar") if given == "tars" else ("day1", "day2")
    assert names == [f"{day}/image_0.jpg" for day in days]


def test_nothing_is_said_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generate.input"):
        list_images(str(tmp_path))


def test_a_image_that_went_or_shrank_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", 2)
    images = list_images(str(folder))
    (folder / "image_0.jpg").unlink()
    (folder / "image_1.jpg").write_bytes(b"short")
    for image in images:
        with pytest.raises(ValueError, match=image.source_name):
            image.read()


def test_the_digest_tells_names_sizes_and_order(tmp_path: Path) -> None:
    images = list_images(str(write_images(tmp_path / "in", 3)))
    again = list_images(str(write_images(tmp_path / "elsewhere", 3)))
    assert digest_of(images) == digest_of(again) != digest_of(images[::-1])
    assert digest_of(images) != digest_of(images[:2])


def test_the_digest_tells_images_that_were_exchanged_for_others_of_the_same_size(tmp_path: Path) -> None:
    """Files without compression of equal sizes differ in nothing else."""
    folder = write_images(tmp_path / "in", 3)
    before = digest_of(list_images(str(folder)))
    path = folder / "image_1.jpg"
    data = path.read_bytes()
    path.write_bytes(data[:-40] + bytes(20) + data[-20:])
    assert digest_of(list_images(str(folder))) != before
    path.write_bytes(data)
    assert digest_of(list_images(str(folder))) == before
